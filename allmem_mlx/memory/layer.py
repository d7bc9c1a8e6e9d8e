"""The memory branch of a hybrid layer: projections, convolution, rates and gates.

From the layer's normed input u it computes (AllMem, arXiv 2602.13680, section 3):

    q, k = L2(RMSNorm(SiLU(conv(W u)))),  v = SiLU(conv(W x))       per head
    eta  = softplus(lr(u) + b0),  m = sigmoid(momentum(u)),  g = sigmoid(gate(u))
    y    = W_o concat(g RMSNorm(read(W, q)))

where x is u, or the embedding of the token (``values`` of :class:`AllMemConfig`); and,
while reading, how the fast weights W change (``fast_weights.py``), or those of them
that ``updates`` names: the others stay W0. The arithmetic is in ``ops.py``, and on
Apple GPUs in ``kernels.py``.
"""

import copy
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx
import mlx.nn as nn

from ..config import AllMemConfig
from . import fast_weights, kernels
from .fast_weights import FastWeights, Matrices
from .ops import RMS_EPS


class MemoryState(NamedTuple):
    """The state of one layer's memory between calls, for a batch of B documents.

    The arrays stand in this order in the ``ArraysCache`` of the layer. Of matrices it
    has those that are written (:attr:`AllMemConfig.written`). A token is ``pending``
    until ``fold`` of them are; then it is in G, until the chunk ends and G is written.
    What belongs to an open chunk is ``None`` where there is nothing of it.

    Args:
        conv_state: the last ``conv_kernel - 1`` inputs of the convolution,
            ``[B, k-1, 3np]``.
        weights: W, the fast weights.
        scales: the factors of the rows of W in U, ``[B, n, rows, 1]``.
        momentum: M.
        grads: G, the open chunk's gradient so far.
        decay_sum: the sum of m over the tokens in G, ``[B, n]``.
        pending: k, v, eta and m of the tokens not yet in G, ``[B, n, fold, 2p+4]``;
            rows not yet filled are zero.

    All but ``conv_state`` are in float32.
    """

    conv_state: mx.array
    weights: Matrices
    scales: Matrices
    momentum: Matrices
    grads: Matrices | None = None
    decay_sum: mx.array | None = None
    pending: mx.array | None = None

    @classmethod
    def size(cls, written: int) -> int:
        """Number of arrays, where so many matrices are written."""
        return 3 + 4 * written

    @classmethod
    def from_arrays(cls, arrays: list[Any]) -> "MemoryState":
        conv_state, *matrices, decay_sum, pending = arrays
        size = len(matrices) // 4
        weights, scales, momentum, grads = (
            tuple(matrices[i * size : (i + 1) * size]) for i in range(4)
        )
        opened = None if decay_sum is None else grads
        return cls(conv_state, weights, scales, momentum, opened, decay_sum, pending)

    def arrays(self) -> list[mx.array | None]:
        return [
            self.conv_state,
            *self.weights,
            *self.scales,
            *self.momentum,
            *(self.grads or (None,) * len(self.weights)),
            self.decay_sum,
            self.pending,
        ]


class Projection(nn.Linear):
    """A projection that stays as it is where mlx-lm quantises all others: its recipes
    of mixed bits do not ask the model."""

    @property
    def to_quantized(self) -> NoReturn:  # type: ignore[override]
        raise AttributeError("a memory is not quantised")


def _projection(inputs: int, outputs: int) -> nn.Linear:
    linear = Projection(inputs, outputs, bias=False)
    linear.weight = mx.random.normal(linear.weight.shape, scale=0.02)
    return linear


class Memory(nn.Module):
    """A memory that is trained while it reads.

    ``in_proj`` holds, in this order, the rows of q, k, v (n p each), the learning
    rates (3 n: gate, up and down of each head), the momentum decay (n) and the output
    gate (n). Where values are made of the token, their rows are ``value_proj``.
    ``w0_*`` are the fast weights before anything was read.

    Args:
        dims (int): D, width of the model.
        config (AllMemConfig): sizes of the memory.

    Shape:
        - input: ``[B, T, D]``, a part of one chunk or whole chunks.
        - output: ``[B, T, D]``.
    """

    def __init__(self, dims: int, config: AllMemConfig):
        super().__init__()
        n, p, h = config.heads, config.head_dim, config.hidden_dim
        self.config = config
        of_tokens = config.values == "token"
        self.in_proj = _projection(dims, (2 if of_tokens else 3) * n * p + 5 * n)
        if of_tokens:
            self.value_proj = _projection(dims, n * p)
        self.rate_bias = mx.zeros((5 * n,))
        self.conv_weight = self._initial_taps()
        self.q_norm = nn.RMSNorm(p, eps=RMS_EPS)
        self.k_norm = nn.RMSNorm(p, eps=RMS_EPS)
        self.w0_gate = mx.random.normal((n, h, p), scale=0.5)
        self.w0_up = mx.random.normal((n, h, p), scale=0.5)
        self.w0_down = mx.random.normal((n, p, h), scale=h**-0.5)
        self.o_norm = nn.RMSNorm(p, eps=config.output_eps)
        self.o_proj = _projection(n * p, dims)
        self._norms: Any = ((None,) * 3, None)  # W0 and N, see initial_norms

    @classmethod
    def of(cls, memory: "Memory") -> "Memory":
        """A memory of this kind with the parameters of another."""
        other = copy.copy(memory)
        other.__class__ = cls
        return other

    def _initial_taps(self) -> mx.array:
        """``[3np, k]``: q and v see the token itself, k the token before it.

        So the memory starts as an induction head: after a token like the one before
        token t, it recalls token t.
        """
        width, taps = self.config.heads * self.config.head_dim, self.config.conv_kernel
        current = mx.zeros((width, taps))
        current[:, -1] = 1
        previous = mx.zeros((width, taps))
        previous[:, max(-2, -taps)] = 1
        return mx.concatenate([current, previous, current])

    @property
    def initial_weights(self) -> FastWeights:
        """W0 in float32, without a batch dimension."""
        initial = (self.w0_gate, self.w0_up, self.w0_down)
        return FastWeights(*(w.astype(mx.float32) for w in initial))

    def initial_state(self, batch: int, dtype: mx.Dtype) -> MemoryState:
        """The state before the first token.

        Args:
            batch (int): B.
            dtype (mx.Dtype): type of the model's activations.
        """
        c = self.config
        n, p = c.heads, c.head_dim
        initial = self._written(self.initial_weights)
        scales = fast_weights.row_scales(initial, self.initial_norms)

        def of_batch(arrays: Matrices) -> Matrices:
            # A kernel would copy an array without memory of its own at every call.
            return tuple(
                mx.contiguous(mx.broadcast_to(x, (batch, *x.shape))) for x in arrays
            )

        weights = of_batch(initial)
        return MemoryState(
            conv_state=mx.zeros((batch, c.conv_kernel - 1, 3 * n * p), dtype),
            weights=weights,
            scales=of_batch(scales),
            momentum=tuple(mx.zeros(w.shape) for w in weights),
        )

    def _written(self, weights: FastWeights) -> Matrices:
        """Those that are written, the last ones of a network."""
        return weights[-len(self.config.written) :]

    @property
    def initial_norms(self) -> Matrices:
        """N, the row norms of W0 where it is written, ``[n, rows, 1]``.

        Every write needs them: they are computed once for the same arrays.
        """
        initial = (self.w0_gate, self.w0_up, self.w0_down)
        of, norms = self._norms
        if any(x is not y for x, y in zip(initial, of, strict=True)):
            norms = fast_weights.row_norms(self._written(self.initial_weights))
            # By this thread, as others may use them too. While a function is traced,
            # nothing can be evaluated.
            with suppress(ValueError):
                mx.eval(norms)
            self._norms = initial, norms
        return norms

    def _projected(self, u: mx.array, embedded: Any) -> mx.array:
        """x of :func:`ops.memory_inputs`, ``[B, T, 3np + 5n]``."""
        projected = self.in_proj(u)
        if "value_proj" not in self:
            return projected
        width = self.config.heads * self.config.head_dim
        queries_keys, rates = mx.split(projected, [2 * width], axis=-1)
        values = self.value_proj(embedded)
        return mx.concatenate([queries_keys, values, rates], axis=-1)

    def __call__(
        self, u: mx.array, cache: Any, token: int, embedded: mx.array | None = None
    ) -> mx.array:
        """Reads the memory for T tokens, chunk by chunk, and learns each.

        Args:
            u (mx.array): the layer's normed input, ``[B, T, D]``: a part of one chunk,
                or whole chunks.
            cache (ArraysCache): the layer's :class:`MemoryState`, updated in place.
            token (int): number of tokens read before.
            embedded (mx.array): the normed embeddings of the tokens, ``[B, T, D]``,
                where values are made of them.
        """
        c = self.config
        ops = kernels.operations(c, self.training, u.dtype)
        B, T, _ = u.shape
        if cache.empty():
            state = self.initial_state(B, u.dtype)
        else:
            state = MemoryState.from_arrays(cache.cache)

        queries, rows, gates, conv_state = ops.memory_inputs(
            projected=self._projected(u, embedded),
            conv_state=state.conv_state,
            conv_weight=self.conv_weight,
            rate_bias=self.rate_bias,
            q_norm=self.q_norm.weight,
            k_norm=self.k_norm.weight,
            learning_rate=c.learning_rate,
        )
        state = state._replace(conv_state=conv_state)
        recalled = []
        for start in range(0, T, c.chunk):
            chunk = slice(start, min(start + c.chunk, T))
            recalled.append(
                ops.memory_read(
                    weights=self.initial_weights.replaced(state.weights),
                    queries=queries[:, :, chunk],
                    gates=gates[:, :, chunk],
                    norm=self.o_norm.weight,
                    eps=c.output_eps,
                    dtype=u.dtype,
                )
            )
            state = self.learn(ops, state, rows[:, :, chunk], token + start)
        cache.cache = state.arrays()
        y = recalled[0] if len(recalled) == 1 else mx.concatenate(recalled, axis=1)
        return self.o_proj(y)

    def learn(
        self, ops: kernels.Operations, state: MemoryState, rows: mx.array, token: int
    ) -> MemoryState:
        """Learns T tokens of one chunk: adds the gradient of every ``fold`` tokens to
        G, and writes W where the chunk ends.

        Args:
            ops (Operations): to use.
            state (MemoryState): before.
            rows (mx.array): of :func:`ops.memory_inputs`, ``[B, n, T, 2p + 4]``.
            token (int): number of tokens read before.
        """
        c = self.config
        T, waiting = rows.shape[2], token % c.fold
        if state.pending is not None:
            if waiting + T < c.fold:
                pending = state.pending[...]  # the old state stays as it was
                pending[:, :, waiting : waiting + T] = rows
                return state._replace(pending=pending)
            rows = mx.concatenate([state.pending[:, :, :waiting], rows], axis=2)
        full = rows.shape[2] // c.fold * c.fold
        left = self._pending(rows[:, :, full:])
        if not full:
            return state._replace(pending=left)

        grads, decay_sum, squares = ops.memory_fold(
            weights=self.initial_weights.replaced(state.weights),
            scales=state.scales,
            grads=state.grads,
            decay_sum=state.decay_sum,
            rows=rows[:, :, :full],
        )
        if (token + T) % c.chunk:
            return state._replace(grads=grads, decay_sum=decay_sum, pending=left)

        written = ops.memory_write(
            weights=state.weights,
            scales=state.scales,
            momentum=state.momentum,
            grads=grads,
            squares=squares,
            decay_sum=decay_sum,
            tokens=c.chunk,
            norms=self.initial_norms,
            max_norm=c.max_update_norm,
        )
        return MemoryState(state.conv_state, *written)

    def _pending(self, rows: mx.array) -> mx.array | None:
        """The rows of the tokens that wait, as a state has them."""
        T = rows.shape[2]
        padding = [(0, 0), (0, 0), (0, self.config.fold - T), (0, 0)]
        return mx.pad(rows, padding) if T else None
