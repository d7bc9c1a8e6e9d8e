"""FLOPs, bytes and state of a model by arithmetic, at any length.

FLOPs are those of matrix products, two for each multiplication and addition, and of the
products with the state of a recurrent layer; those of norms, activations and
convolutions, a few in a thousand, are left out. The tests compare FLOPs and bytes with
those of the graph that MLX evaluates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from ..cache import attention_caches, recurrent_caches
from ..config import AllMemConfig
from ..families import EXPERTS_OF_A_TOKEN, attention_windows
from ..model import Model, is_memory

FLOAT32 = 4  # bytes
LINEAR = (nn.Linear, nn.QuantizedLinear)
EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
TABLES = (nn.Embedding, nn.QuantizedEmbedding)
# What attentions call the number of their heads; it may differ from layer to layer.
HEADS = ("n_heads", "num_attention_heads", "num_heads")
# FLOPs of a token for each element of the matrices of a recurrent layer: a product with
# the query, an outer product, and in DeltaNet a product with the key.
RECURRENCE = {"gated DeltaNet": 6, "convolution": 0}
OTHER_RECURRENCE = 4


@dataclass(frozen=True)
class AttentionSizes:
    """The sizes of an attention.

    Args:
        heads (int): of the queries.
        head_dim (int): elements of a key and its value, of one head.
        kv_dim (int): elements of the keys and values that it keeps of a token; 0 if it
            reads those of another layer.
        window (int): its window, if it slides in the base model.
    """

    heads: int
    head_dim: int
    kv_dim: int
    window: int | None


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that its costs depend on.

    Args:
        dims (int): D, width of the model.
        attentions (tuple): of the layers that have attention.
        projections (int): matrix entries of the token mixers, attention and recurrent.
        channel (int): those of the channel mixers: MLPs, and a token's experts.
        head (int): those of the output matrix.
        memory_layers (int): layers with a memory.
        recurrent_state (int): bytes of the state of the recurrent layers.
        recurrence (int): FLOPs of a token that read and update it.
        weights (int): bytes of the weights that a token needs, without the memory's.
        all_weights (int): bytes of all weights, without the memory's.
        memory_weights (int): bytes of the memory's weights.
        itemsize (int): bytes of an element of a key or value.
        config (AllMemConfig): the settings of the hybrid layers.
    """

    dims: int
    attentions: tuple[AttentionSizes, ...]
    projections: int
    channel: int
    head: int
    memory_layers: int
    recurrent_state: int
    recurrence: int
    weights: int
    all_weights: int
    memory_weights: int
    itemsize: int
    config: AllMemConfig

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        """The sizes of a hybrid model, none of whose weights is evaluated."""
        cache = state_of_a_token(model)
        recurrent: list[Any] = list(recurrent_caches(cache))
        factor = RECURRENCE.get(model.family.recurrent or "", OTHER_RECURRENCE)
        projections, channel, head = _entries(model)
        parameters: Any = tree_flatten(model.parameters())
        memory = sum(x.nbytes for name, x in parameters if is_memory(name))
        weights = sum(x.nbytes for _, x in parameters) - memory
        return cls(
            dims=model.base_config["hidden_size"],
            attentions=tuple(_attentions(model, cache)),
            projections=projections,
            channel=channel,
            head=head,
            memory_layers=len(model.allmem.memory_layers(model.global_layers)),
            recurrent_state=sum(x.nbytes for x in recurrent),
            recurrence=factor * sum(x.cache[-1].size for x in recurrent),
            weights=weights - _unused_weights(model),
            all_weights=weights,
            memory_weights=memory,
            itemsize=model.dtype.size,
            config=model.allmem,
        )

    @property
    def fast_weights(self) -> int:
        """``3 n p h``, or ``n p h`` where only down is written: the elements of W that
        are in a state, of all layers."""
        c = self.config
        matrix = c.heads * c.head_dim * c.hidden_dim
        return len(c.written) * matrix * self.memory_layers

    @property
    def kv_of_a_token(self) -> int:
        """Bytes by which full attention grows with every token."""
        return self.itemsize * sum(
            x.kv_dim for x in self.attentions if x.window is None
        )

    def kv(self, seen: int, length: int) -> int:
        """Bytes of keys and values after ``length`` tokens, of which a global layer
        keeps ``seen``."""
        return self.itemsize * sum(
            x.kv_dim * (seen if x.window is None else min(length, x.window))
            for x in self.attentions
        )


def state_of_a_token(model: Model) -> list[Any]:
    """The state of a model, without memories, after one token. Nothing is evaluated:
    its arrays have sizes and no values."""
    cache = model.make_cache()
    for layer in attention_caches(cache):
        layer.caches = layer.caches[:1]
    model(mx.zeros((1, 1), mx.int32), cache=cache)
    return cache


def _attentions(model: Model, cache: list[Any]) -> Iterator[AttentionSizes]:
    states = iter(attention_caches(cache))
    windows = attention_windows(model.base_config).values()
    widths: dict[int | None, int] = {}  # of a head, where layers slide or do not
    for attention, window in zip(model.attentions.values(), windows, strict=True):
        kept = 0
        if not attention.borrows:
            ring = next(states).ring
            kept = sum(x.shape[1] * x.shape[3] for x in (ring.keys, ring.values))
            widths[window] = sum(x.shape[3] for x in (ring.keys, ring.values))
        named = (getattr(attention, name, None) for name in HEADS)
        heads = next(filter(None, named), model.base_config["num_attention_heads"])
        yield AttentionSizes(heads, widths[window], kept, window)


def recurrent_part(layer: nn.Module) -> nn.Module | None:
    """The recurrent part of a layer, if it has one: what has a convolution over
    tokens."""
    for part in layer.children().values():
        if isinstance(part, nn.Module):
            if any(isinstance(x, nn.Conv1d) for x in part.modules()):
                return part
    return None


def _token_mixers(model: Model) -> list[nn.Module]:
    """The attention and the recurrent part of every layer that has one."""
    recurrent = filter(None, map(recurrent_part, model.layers))
    return [*model.attentions.values(), *recurrent]


def _head(model: Model) -> nn.Module:
    """The output matrix, which may be the embedding."""
    if "lm_head" in model:
        return model.lm_head
    embedding = model.token_embedding
    return getattr(embedding, "embedding", embedding)  # LoRA wraps it


def _entries(model: Model) -> tuple[int, int, int]:
    """Matrix entries by which a token is multiplied: those of the token mixers, of the
    channel mixers and of the output."""
    mixers = {id(x) for mixer in _token_mixers(model) for x in mixer.modules()}
    projections = channel = 0
    head, used = _head(model), (experts(model) or (0, 0))[0]
    for name, module in model.named_modules():
        if module is head or is_memory(f"{name}."):
            continue
        if isinstance(module, LINEAR + EXPERTS):
            entries = _matrix(module)
            if isinstance(module, EXPERTS):
                entries = entries * used // module.num_experts
            if id(module) in mixers:
                projections += entries
            else:
                channel += entries
    return projections, channel, _matrix(head)


def _matrix(module: Any) -> int:
    """The entries of a matrix, packed into words of 32 bits if it is quantised."""
    size: int = module.weight.size
    return size * 32 // module.bits if "scales" in module else size


def experts(model: Model) -> tuple[int, int] | None:
    """The number of experts that a token is given to, and that of all in a layer;
    ``None`` if there are none."""
    found = (x.num_experts for x in model.modules() if isinstance(x, EXPERTS))
    if (count := max(found, default=None)) is None:
        return None
    config = model.base_config
    known = (config[name] for name in EXPERTS_OF_A_TOKEN if config.get(name))
    return next(known, count), count


def _unused_weights(model: Model) -> int:
    """Bytes of the weights that a token does not need: those of other experts, and
    tables of which it needs a row."""
    unused, head, used = 0, _head(model), (experts(model) or (0, 0))[0]
    for module in model.modules():
        if isinstance(module, EXPERTS):
            count = module.num_experts
            unused += _nbytes(module) * (count - used) // count
        elif isinstance(module, TABLES) and module is not head:
            unused += _nbytes(module)
    return unused


def _nbytes(module: nn.Module) -> int:
    parameters: Any = tree_flatten(module.parameters())
    return sum(x.nbytes for _, x in parameters)


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
        projections (int): of the token mixers, attention and recurrent.
        scores (int): of queries with keys, and of weights with values.
        recurrence (int): of the state of recurrent layers.
        memory (int): of the memory's projections, reads and updates.
        channel (int): of the channel mixers.
    """

    projections: int
    scores: int
    recurrence: int
    memory: int
    channel: int

    @property
    def mixer(self) -> int:
        """FLOPs of the token mixers: all but the channel mixers."""
        return self.projections + self.scores + self.recurrence + self.memory

    @property
    def total(self) -> int:
        return self.mixer + self.channel


def memory_flops(sizes: Sizes) -> int:
    """Per token and layer: ``2 D (4 n p + 5 n) + 18 n p h``, or ``12 n p h`` where only
    down is written.

    The last term is reading 6, the keys' way forward 4, and an outer product 2 for each
    matrix that is written; and, for gate and up, the values' way back 2.
    """
    c = sizes.config
    n, p, h = c.heads, c.head_dim, c.hidden_dim
    back = 2 if "gate" in c.written else 0
    learning = 4 + 2 * len(c.written) + back
    return 2 * sizes.dims * (4 * n * p + 5 * n) + (6 + learning) * n * p * h


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
    scored = 0
    for layer in sizes.attentions:
        seen = (window, sinks) if layer.window is None else (layer.window, 0)
        width = layer.heads * layer.head_dim
        scored += width * pairs(length, *seen, block)
    has_memory = memory and not full
    return ReadingFlops(
        projections=2 * sizes.projections * length,
        scores=2 * scored,
        recurrence=sizes.recurrence * length,
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
    return sizes.kv(seen, max([seen, *(x.window or 0 for x in sizes.attentions)]))


def memory_bytes(sizes: Sizes) -> int:
    """Bytes of the memory's state at most, just before the end of a chunk: W and M; G,
    if a chunk has several folds; the tokens of an open fold, if it has several. See
    :class:`memory.MemoryState`."""
    c = sizes.config
    n, p, h = c.heads, c.head_dim, c.hidden_dim
    matrices = len(c.written) * n * p * h
    rows = n * p + (2 * n * h if "gate" in c.written else 0)
    float32 = 2 * matrices + rows
    if c.fold < c.chunk:
        float32 += matrices + n
    if c.fold > 1:
        float32 += n * c.fold * (2 * p + 4)
    conv = (c.conv_kernel - 1) * 3 * n * p
    return sizes.memory_layers * (float32 * FLOAT32 + conv * sizes.itemsize)


def decoding(
    sizes: Sizes, length: int, *, full: bool = False, memory: bool = True
) -> int:
    """FLOPs of the token after ``length`` others, logits included, with an equal share
    of the memory's update; see :func:`reading`."""
    before, after = (
        reading(sizes, n, full=full, memory=memory).total for n in (length, length + 1)
    )
    return after - before + 2 * sizes.head


@dataclass(frozen=True)
class Traffic:
    """Bytes that decoding a token moves at least.

    Args:
        weights (int): of the model, without the memory's.
        attention (int): of keys and values.
        recurrent (int): of the state of recurrent layers.
        memory (int): of the memory's weights and state.
    """

    weights: int
    attention: int
    recurrent: int
    memory: int

    @property
    def total(self) -> int:
        return self.weights + self.attention + self.recurrent + self.memory


def decoding_bytes(
    sizes: Sizes, length: int, *, full: bool = False, memory: bool = True
) -> Traffic:
    """Bytes moved by the token after ``length`` others: each weight and each element of
    the state once where it is read, and once where it is written; see :func:`reading`.

    A token reads W, and of the memory's weights all but the W0 in whose place W is,
    writes its row, and moves the state of the convolution. Every ``fold`` tokens the
    open fold is read and begun anew. A fold also reads G, but for the first of a chunk,
    and writes it, but for the last, which reads and writes M and writes W.
    """
    c = sizes.config
    recurrent = 2 * sizes.recurrent_state
    seen = length + 1 if full else min(length + 1, c.window + c.sinks)
    attention = sizes.kv(seen, length + 1)
    if full or not memory:
        return Traffic(sizes.weights, attention, recurrent, 0)
    rows = c.heads * (2 * c.head_dim + 4) * sizes.memory_layers
    W = sizes.fast_weights
    each = W + rows
    fold = 2 * W + 2 * rows * c.fold
    # M is read and written, W is written; G is not read by the first fold of a chunk,
    # nor written by the last.
    write = 3 * W - 2 * W
    conv = 2 * (c.conv_kernel - 1) * 3 * c.heads * c.head_dim * sizes.memory_layers
    numbers = each + fold / c.fold + write / c.chunk
    return Traffic(
        weights=sizes.weights,
        attention=attention,
        recurrent=recurrent,
        memory=sizes.memory_weights
        + conv * sizes.itemsize
        + round((numbers - W) * FLOAT32),
    )
