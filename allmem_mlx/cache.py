"""The state of a model: the cache list that mlx-lm passes to it.

A layer's entry is a :class:`HybridCache` for attention; mlx-lm's own ``ArraysCache``
for a recurrent layer or a convolution, whose arrays have a fixed size by themselves; or
a :class:`LayerCache` of both, where a layer has both. Everything in it is of a stock
class by name, because mlx-lm looks the classes of a saved prompt cache up among its
own, before it loads the model.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, RotatingKVCache


class LayerCache(CacheList):
    """A ``CacheList`` that does not offer to be batched: rows would leave the chunks'
    grid at different tokens."""

    def is_trimmable(self) -> bool:
        """A token that left the window, or changed the memory, cannot be taken back."""
        return False

    @property
    def merge(self) -> NoReturn:
        raise AttributeError("an AllMem state cannot be batched")


class HybridCache(LayerCache):
    """State of an attention layer: the attention ring and the arrays of
    :class:`MemoryState`, or the ring alone where the layer has no memory or the memory
    is off.

    Two attributes are set while tokens are read, see :meth:`Model.reading`:
    ``embedded``, their normed embeddings, ``[B, T, D]``, and ``lent``, the views of the
    ring that layers without keys of their own read too.
    """

    embedded: Any = None
    lent: Any = ()

    @property
    def ring(self) -> Any:
        return self.caches[0]

    @property
    def offset(self) -> int:
        """Tokens read."""
        return int(self.ring.offset)

    @property
    def memory(self) -> list[mx.array | None]:
        """The arrays of the memory, if the layer has one; ``None`` for those that are
        not there now."""
        return self.caches[1].cache if len(self.caches) > 1 else []

    @memory.setter
    def memory(self, arrays: list[mx.array | None]) -> None:
        if len(self.caches) > 1:
            self.caches[1].cache = arrays

    @property
    def arrays(self) -> list[mx.array | None]:
        """Keys, values and the memory."""
        return [self.ring.keys, self.ring.values, *self.memory]

    @arrays.setter
    def arrays(self, arrays: list[mx.array | None]) -> None:
        self.ring.keys, self.ring.values, *self.memory = arrays


LayerCache.__name__ = HybridCache.__name__ = "CacheList"

OPEN = "open."  # in the name of an array that is there only while a chunk is open


def adopt(cache: Sequence[Any]) -> None:
    """Makes the entries of a cache that mlx-lm has loaded what they were."""
    for part in cache:
        if type(part) is CacheList:
            ring = isinstance(part.caches[0], RotatingKVCache)
            part.__class__ = HybridCache if ring else LayerCache
            adopt(part.caches)


def parts(cache: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The entry and the state of every attention and every recurrent layer."""
    for i, part in enumerate(cache):
        nested = isinstance(part, CacheList) and not isinstance(part, HybridCache)
        for leaf in part.caches if nested else [part]:
            yield i, leaf


def attention_caches(cache: Sequence[Any]) -> list[HybridCache]:
    """The states of the attention layers that have keys of their own, in order."""
    return [part for _, part in parts(cache) if isinstance(part, HybridCache)]


def recurrent_caches(cache: Sequence[Any]) -> list[ArraysCache]:
    """The states of the recurrent layers and convolutions, in order."""
    return [part for _, part in parts(cache) if isinstance(part, ArraysCache)]


def tokens_read(cache: Sequence[Any]) -> int:
    """The number of tokens that a state was read from."""
    return next(x for _, x in parts(cache) if isinstance(x, HybridCache)).offset


def has_memory(cache: Sequence[Any]) -> bool:
    """Whether a state has memories, which :attr:`Model.memory_is_off` says."""
    return any(layer.memory for layer in attention_caches(cache))


def fork(cache: Sequence[Any]) -> list[Any]:
    """A cache of its own. Arrays are shared: none is ever changed."""
    forked = []
    for part in cache:
        part = copy.copy(part)
        if isinstance(part, CacheList):
            part.caches = tuple(fork(part.caches))
        elif isinstance(part, ArraysCache):
            part.cache = list(part.cache)
        forked.append(part)
    return forked


def named_arrays(
    cache: Sequence[Any], memory: Mapping[int, Sequence[str]]
) -> dict[str, mx.array]:
    """Every array of a state that has read, by its name in a state file.

    Args:
        cache (list): the state of every layer.
        memory (dict): the names of a memory's arrays, in order, by their number.
    """
    named: dict[str, mx.array] = {}
    for i, part in parts(cache):
        pairs = zip(_names(i, part, memory), _arrays(part), strict=True)
        named |= {name: x for name, x in pairs if x is not None}
    return named


def set_arrays(
    cache: Sequence[Any],
    arrays: dict[str, mx.array],
    memory: Mapping[int, Sequence[str]],
) -> None:
    """Gives a state the arrays of :func:`named_arrays`.

    Raises:
        KeyError: if one is missing that is always there.
    """
    for i, part in parts(cache):
        found = [
            arrays.get(name) if OPEN in name else arrays[name]
            for name in _names(i, part, memory)
        ]
        if isinstance(part, HybridCache):
            part.arrays = found
        else:
            part.cache = found


def _arrays(part: Any) -> list[mx.array | None]:
    return part.arrays if isinstance(part, HybridCache) else part.cache


def _names(entry: int, part: Any, memory: Mapping[int, Sequence[str]]) -> list[str]:
    if isinstance(part, HybridCache):
        names = ["keys", "values", *memory.get(len(part.memory), ())]
    else:
        names = [f"recurrent.{i}" for i in range(len(part.cache))]
    return [f"layers.{entry}.{name}" for name in names]
