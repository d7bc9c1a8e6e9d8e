"""The memory branch of a hybrid layer: projections, convolution, rates and gates.

What it computes from the layer's normed input u (AllMem, arXiv 2602.13680, section 3):

    q, k = L2(RMSNorm(SiLU(conv(W u)))),  v = SiLU(conv(W u))       per head
    eta  = softplus(lr(u) + b0),  m = sigmoid(momentum(u)),  g = sigmoid(gate(u))
    y    = W_o concat(g RMSNorm(read(W, q)))

and, while reading, how the fast weights W change (``fast_weights.py``).
"""

import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import fast_weights
from .config import AllMemConfig
from .fast_weights import FastWeights

QK_NORM_EPS = 1e-6
L2_EPS = 1e-5
NORM_FLOOR = 1e-10


class MemoryState(NamedTuple):
    """What one layer's memory holds between calls, for a batch of B documents.

    Everything but ``tail`` is float32. The arrays stand in this order in the
    ``ArraysCache`` of the layer. A token waits in ``block`` until the block is full.

    Args:
        tail: the last ``conv_kernel - 1`` inputs of the convolution, ``[B, k-1, 3np]``.
        weights: W, the fast weights.
        momentum: M.
        grads: G, the open chunk's gradient so far.
        block: k, v and eta of the tokens not yet in G, ``[B, n, fold, 2p+3]``; rows
            not yet filled are zero.
        decay: the open chunk's sum of momentum decays, ``[B, n]``.
    """

    tail: mx.array
    weights: FastWeights
    momentum: FastWeights
    grads: FastWeights
    block: mx.array
    decay: mx.array

    @classmethod
    def size(cls) -> int:
        """Number of arrays."""
        return 3 + 3 * len(FastWeights._fields)

    @classmethod
    def from_arrays(cls, arrays: list[mx.array]) -> "MemoryState":
        tail, *matrices, block, decay = arrays
        return cls(
            tail,
            FastWeights(*matrices[0:3]),
            FastWeights(*matrices[3:6]),
            FastWeights(*matrices[6:9]),
            block,
            decay,
        )

    def arrays(self) -> list[mx.array]:
        return [
            self.tail,
            *self.weights,
            *self.momentum,
            *self.grads,
            self.block,
            self.decay,
        ]


def _unit(x: mx.array) -> mx.array:
    """``L2(x) = x / (||x|| + 1e-5)``."""
    # The first token has no key when keys are of the token before; the derivative of
    # a norm is not a number at 0.
    squared = mx.maximum(mx.square(x).sum(-1, keepdims=True), NORM_FLOOR**2)
    return x / (mx.sqrt(squared) + L2_EPS)


def _zeros_like(weights: FastWeights) -> FastWeights:
    return FastWeights(*(mx.zeros_like(w) for w in weights))


class Memory(nn.Module):
    """A memory that is trained while it reads.

    ``in_proj`` holds, in this order, the rows of q, k, v (n p each), the learning
    rates (3 n: gate, up and down of each head), the momentum decay (n) and the output
    gate (n). ``w0_*`` are the fast weights before anything was read.

    Args:
        dims (int): D, width of the model.
        config (AllMemConfig): sizes of the memory.

    Shape:
        - input: ``[B, T, D]``, T tokens of one chunk.
        - output: ``[B, T, D]``.
    """

    def __init__(self, dims: int, config: AllMemConfig):
        super().__init__()
        n, p, h = config.heads, config.head_dim, config.hidden_dim
        self.config = config
        self.in_proj = nn.Linear(dims, 3 * n * p + 5 * n, bias=False)
        self.in_proj.weight = mx.random.normal(self.in_proj.weight.shape, scale=0.02)
        self.rate_bias = mx.zeros((5 * n,))
        self.conv_weight = self._initial_taps()
        self.q_norm = nn.RMSNorm(p, eps=QK_NORM_EPS)
        self.k_norm = nn.RMSNorm(p, eps=QK_NORM_EPS)
        self.w0_gate = mx.random.normal((n, h, p), scale=0.5)
        self.w0_up = mx.random.normal((n, h, p), scale=0.5)
        self.w0_down = mx.random.normal((n, p, h), scale=h**-0.5)
        self.o_norm = nn.RMSNorm(p, eps=QK_NORM_EPS)
        self.o_proj = nn.Linear(n * p, dims, bias=False)
        self.o_proj.weight = mx.random.normal(self.o_proj.weight.shape, scale=0.02)

    def _initial_taps(self) -> mx.array:
        """``[3np, k]``: q and v see the token itself, k the token before it.

        So the memory starts as an induction head: after a token like the one before
        token t, it recalls token t.
        """
        width, taps = self.config.heads * self.config.head_dim, self.config.conv_kernel
        own = mx.zeros((width, taps))
        own[:, -1] = 1
        previous = mx.zeros((width, taps))
        previous[:, max(-2, -taps)] = 1
        return mx.concatenate([own, previous, own])

    @property
    def initial_weights(self) -> FastWeights:
        """W0, without a batch dimension."""
        return FastWeights(self.w0_gate, self.w0_up, self.w0_down)

    def initial_state(self, batch: int, dtype: mx.Dtype) -> MemoryState:
        """The state before the first token.

        Args:
            batch (int): B.
            dtype (mx.Dtype): type of the model's activations.
        """
        c = self.config
        n, p = c.heads, c.head_dim
        weights = FastWeights(
            *(
                mx.broadcast_to(w.astype(mx.float32), (batch, *w.shape))
                for w in self.initial_weights
            )
        )
        return MemoryState(
            tail=mx.zeros((batch, c.conv_kernel - 1, 3 * n * p), dtype),
            weights=weights,
            momentum=_zeros_like(weights),
            grads=_zeros_like(weights),
            block=mx.zeros((batch, n, c.fold, 2 * p + 3)),
            decay=mx.zeros((batch, n)),
        )

    def _inputs(self, u: mx.array, tail: mx.array):
        """Everything that is computed from a token and its three predecessors.

        Returns:
            tuple: queries ``[B, n, T, p]``, block rows (k, v, eta) ``[B, n, T, 2p+3]``,
            momentum decays ``[B, n, T]`` and gates ``[B, n, T, 1]``, in float32, and
            the new tail.
        """
        c = self.config
        B, T, _ = u.shape
        n, p = c.heads, c.head_dim
        projected = self.in_proj(u)
        qkv, rates = mx.split(projected, [3 * n * p], axis=-1)

        qkv = mx.concatenate([tail, qkv], axis=1)
        tail = qkv[:, T:]
        mixed = sum(
            self.conv_weight[:, i] * qkv[:, i : i + T] for i in range(c.conv_kernel)
        )
        mixed = nn.silu(mixed).astype(mx.float32)
        mixed = mixed.reshape(B, T, 3, n, p).transpose(2, 0, 3, 1, 4)
        queries = _unit(self.q_norm(mixed[0]))
        keys = _unit(self.k_norm(mixed[1]))
        values = mixed[2]

        rates = rates.astype(mx.float32) + self.rate_bias
        rates, decay, gate = mx.split(rates, [3 * n, 4 * n], axis=-1)
        # b0 = softplus^-1(learning_rate)
        offset = c.learning_rate + math.log(-math.expm1(-c.learning_rate))
        rates = nn.softplus(rates + offset).reshape(B, T, n, 3).transpose(0, 2, 1, 3)
        decay = mx.sigmoid(decay).transpose(0, 2, 1)
        gate = mx.sigmoid(gate).transpose(0, 2, 1)[..., None]
        rows = mx.concatenate([keys, values, rates], axis=-1)
        return queries, rows, decay, gate, tail

    def _fold(self, state: MemoryState, rows: mx.array, token: int) -> MemoryState:
        """Adds the gradient of every completed block of ``fold`` tokens to G."""
        c = self.config
        T, waiting = rows.shape[2], token % c.fold
        if waiting + T < c.fold:
            block = state.block[...]  # the old state stays as it was
            block[:, :, waiting : waiting + T] = rows
            return state._replace(block=block)

        rows = mx.concatenate([state.block[:, :, :waiting], rows], axis=2)
        full = rows.shape[2] // c.fold * c.fold
        keys, values, rates = mx.split(
            rows[:, :, :full], [c.head_dim, 2 * c.head_dim], axis=-1
        )
        grads = fast_weights.gradient(self._normalized(state), keys, values, rates)
        grads = FastWeights(
            *(g + new for g, new in zip(state.grads, grads, strict=True))
        )
        left = rows[:, :, full:]
        block = mx.pad(left, [(0, 0), (0, 0), (0, c.fold - left.shape[2]), (0, 0)])
        return state._replace(grads=grads, block=block)

    def _normalized(self, state: MemoryState) -> FastWeights:
        """U, the weights with the row norms they started with."""
        norms = fast_weights.row_norms(self.initial_weights)
        return fast_weights.normalize(state.weights, norms)

    def __call__(self, u: mx.array, cache: Any, token: int) -> mx.array:
        """Reads the memory for T tokens, then learns them.

        Args:
            u (mx.array): ``[B, T, D]``.
            cache (ArraysCache): the layer's :class:`MemoryState`, updated in place.
            token (int): number of tokens read before. The T tokens must not cross a
                chunk boundary.
        """
        c = self.config
        B, T, _ = u.shape
        if cache.empty():
            state = self.initial_state(B, u.dtype)
        else:
            state = MemoryState.from_arrays(cache.cache)

        queries, rows, decay, gate, tail = self._inputs(u, state.tail)
        y = gate * self.o_norm(fast_weights.read(state.weights, queries))
        y = y.transpose(0, 2, 1, 3).reshape(B, T, -1).astype(u.dtype)

        state = self._fold(state, rows, token)
        state = state._replace(tail=tail, decay=state.decay + decay.sum(-1))
        if (token + T) % c.chunk == 0:
            weights, momentum = fast_weights.write(
                self._normalized(state),
                state.momentum,
                state.grads,
                state.decay / c.chunk,
                c.max_update_norm,
            )
            state = state._replace(
                weights=weights,
                momentum=momentum,
                grads=_zeros_like(weights),
                decay=mx.zeros_like(state.decay),
            )
        cache.cache = state.arrays()
        return self.o_proj(y)
