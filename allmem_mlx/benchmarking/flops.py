"""FLOPs, bytes and state of a model by arithmetic, at any length.

FLOPs are those of matrix products, two for each multiplication and addition; those of
norms, activations and the convolution, a few in a thousand, are left out. The tests
compare FLOPs and bytes with those of the graph that MLX evaluates.
"""

from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import AllMemConfig
from ..families import sliding_windows
from ..model import Model, is_memory

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that its costs depend on.

    Args:
        dims (int): D, width of the model.
        query_dim, kv_dim (int): width of all queries, and of the keys of a token.
        attention (int): matrix entries of the attention of all layers.
        channel (int): those of the channel mixers (MLPs).
        head (int): those of the output matrix.
        global_layers (int): layers over window and sinks.
        memory_layers (int): those of them with a memory.
        sliding (tuple): windows of the layers that slide in the base model.
        weights (int): bytes of all weights that a token needs, without the memory's.
        memory_weights (int): bytes of the memory's weights.
        itemsize (int): bytes of an element of a key or value.
        config (AllMemConfig): the settings of the hybrid layers.
    """

    dims: int
    query_dim: int
    kv_dim: int
    attention: int
    channel: int
    head: int
    global_layers: int
    memory_layers: int
    sliding: tuple[int, ...]
    weights: int
    memory_weights: int
    itemsize: int
    config: AllMemConfig

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        """The sizes of a hybrid model, none of whose weights is evaluated."""
        base = model.base_config
        heads, width = base["num_attention_heads"], base["hidden_size"]
        head_dim = base.get("head_dim") or width // heads
        kv_heads = base.get("num_key_value_heads") or heads
        attention = channel = head = 0
        for name, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.QuantizedLinear)):
                continue
            if ".self_attn." not in name:
                if ".layers." in f".{name}":
                    channel += _entries(module)
                else:
                    head += _entries(module)
            elif ".memory." not in name:
                attention += _entries(module)
        parameters: Any = tree_flatten(model.parameters())
        tied = not head
        weights = memory = 0
        for name, x in parameters:
            if is_memory(name):
                memory += x.nbytes
            elif tied or not name.startswith("model.embed"):
                weights += x.nbytes
        windows = sliding_windows(base)
        layers = model.global_layers
        return cls(
            dims=width,
            query_dim=heads * head_dim,
            kv_dim=kv_heads * head_dim,
            attention=attention,
            channel=channel,
            head=head or base["vocab_size"] * width,
            global_layers=len(layers),
            memory_layers=len(model.allmem.memory_layers(layers)),
            sliding=tuple(w for w in windows if w is not None),
            weights=weights,
            memory_weights=memory,
            itemsize=model.dtype.size,
            config=model.allmem,
        )

    @property
    def fast_weights(self) -> int:
        """``3 n p h``, the elements of W, of all layers."""
        c = self.config
        return 3 * c.heads * c.head_dim * c.hidden_dim * self.memory_layers

    def kv(self, seen: int, length: int) -> int:
        """Bytes of keys and values after ``length`` tokens, of which a global layer
        keeps ``seen``."""
        tokens = self.global_layers * seen + sum(min(length, w) for w in self.sliding)
        return 2 * self.kv_dim * tokens * self.itemsize


def _entries(linear: Any) -> int:
    if isinstance(linear, nn.QuantizedLinear):  # packed into words of 32 bits
        return linear.weight.size * 32 // linear.bits
    return linear.weight.size


def pairs(length: int, window: int, sinks: int, block: int = 1) -> int:
    """Pairs of a query and a key that attention scores.

    Args:
        length (int): L, tokens read.
        window (int): W. At least L for full attention.
        sinks (int): s.
        block (int): queries that are scored at once, against the same keys, and then
            masked. 1 counts the pairs that are seen,
            ``sum_t min(t, W) + min(s, max(0, t - W))``.
    """
    if block == 1:
        outside = max(0, length - window)  # queries that do not see all before them
        inside, filling = length - outside, min(outside, sinks)
        return (
            inside * (inside + 1) // 2
            + outside * (window + sinks)
            - filling * (2 * sinks - filling - 1) // 2
        )
    total = 0
    for start in range(0, length, block):
        size = min(block, length - start)
        total += size * (min(start, window + sinks) + size)
    return total


@dataclass(frozen=True)
class ReadingFlops:
    """FLOPs of reading.

    Args:
        projections (int): of attention.
        scores (int): of queries with keys, and of weights with values.
        memory (int): of the memory's projections, reads and updates.
        channel (int): of the channel mixers.
    """

    projections: int
    scores: int
    memory: int
    channel: int

    @property
    def mixer(self) -> int:
        """FLOPs of the token mixers: all but the channel mixers."""
        return self.projections + self.scores + self.memory

    @property
    def total(self) -> int:
        return self.mixer + self.channel


def memory_flops(sizes: Sizes) -> int:
    """Per token and layer: ``2 D (4 n p + 5 n) + 18 n p h``.

    The last term is reading 6, the keys' way forward 4, the values' way back 2 and
    three outer products 6.
    """
    c = sizes.config
    n, p, h = c.heads, c.head_dim, c.hidden_dim
    return 2 * sizes.dims * (4 * n * p + 5 * n) + 18 * n * p * h


def reading(
    sizes: Sizes,
    length: int,
    *,
    full: bool = False,
    memory: bool = True,
    block: int = 1,
) -> ReadingFlops:
    """FLOPs to read a text.

    Args:
        sizes (Sizes): of the model.
        length (int): L, tokens.
        full (bool): ``True`` for the base model, full attention without memory.
        memory (bool): ``False`` for window + sinks.
        block (int): see :func:`pairs`.
    """
    c = sizes.config
    window, sinks = (length, 0) if full else (c.window, c.sinks)
    scored = sizes.global_layers * pairs(length, window, sinks, block)
    scored += sum(pairs(length, w, 0, block) for w in sizes.sliding)
    has_memory = memory and not full
    return ReadingFlops(
        projections=2 * sizes.attention * length,
        scores=4 * sizes.query_dim * scored,
        memory=has_memory * sizes.memory_layers * memory_flops(sizes) * length,
        channel=2 * sizes.channel * length,
    )


def cache_bytes(sizes: Sizes, length: int) -> int:
    """Bytes of the keys and values of full attention."""
    return sizes.kv(length, length)


def ring_bytes(sizes: Sizes) -> int:
    """Bytes of the keys and values of window and sinks."""
    c = sizes.config
    seen = c.window + c.sinks
    return sizes.kv(seen, max([seen, *sizes.sliding]))


def memory_bytes(sizes: Sizes) -> int:
    """Bytes of the memory's state: W, M and G, and the tokens of an open fold; see
    :class:`memory.MemoryState`."""
    c = sizes.config
    n, p, h = c.heads, c.head_dim, c.hidden_dim
    float32 = 3 * (3 * n * p * h) + n * (2 * h + p) + n * c.fold * (2 * p + 4) + n
    conv = (c.conv_kernel - 1) * 3 * n * p
    return sizes.memory_layers * (float32 * FLOAT32 + conv * sizes.itemsize)


def decoding(sizes: Sizes, length: int, *, full: bool = False) -> int:
    """FLOPs of the token after ``length`` others, logits included, with an equal share
    of the memory's update."""
    before, after = (reading(sizes, n, full=full).total for n in (length, length + 1))
    return after - before + 2 * sizes.head


@dataclass(frozen=True)
class Traffic:
    """Bytes that decoding a token moves at least.

    Args:
        weights (int): of the model, without the memory's.
        attention (int): of keys and values.
        memory (int): of the memory's weights and state.
    """

    weights: int
    attention: int
    memory: int

    @property
    def total(self) -> int:
        return self.weights + self.attention + self.memory


def decoding_bytes(sizes: Sizes, length: int, *, full: bool = False) -> Traffic:
    """Bytes moved by the token after ``length`` others: each weight and each element of
    the state once where it is read, and once where it is written.

    A token reads W, and of the memory's weights all but W0, and moves the state of the
    convolution. Every ``fold`` tokens, G and the open fold are read and written; every
    ``chunk`` tokens M and W0 are read, and W, M and G written.
    """
    c = sizes.config
    if full:
        return Traffic(sizes.weights, cache_bytes(sizes, length + 1), 0)
    seen = min(length + 1, c.window + c.sinks)
    rows = c.heads * (2 * c.head_dim + 4) * sizes.memory_layers
    W = sizes.fast_weights
    each = W + rows
    fold = 2 * W + 2 * rows * c.fold
    write = 5 * W  # W0 and M read; W, M and G written: W and G were there
    conv = 2 * (c.conv_kernel - 1) * 3 * c.heads * c.head_dim * sizes.memory_layers
    numbers = each + fold / c.fold + write / c.chunk
    return Traffic(
        weights=sizes.weights,
        attention=sizes.kv(seen, length + 1),
        memory=sizes.memory_weights
        + conv * sizes.itemsize
        + round((numbers - W) * FLOAT32),
    )
