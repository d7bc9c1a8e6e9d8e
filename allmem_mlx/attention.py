"""Sliding-window attention with sinks, around a base model's own attention.

A query sees itself, the ``window - 1`` tokens before it and the first ``sinks`` tokens
of the document (AllMem, arXiv 2602.13680; the mask is AHN's). Keys and values live in
a ring of fixed size (``ring.py``).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import RotatingKVCache

from .cache import HybridCache
from .config import AllMemConfig
from .families import Family
from .families.patches import subclass
from .ring import Past, Tiles


def rope_scale(rope: Any) -> float:
    """The factor by which mlx-lm's rotary embeddings scale what they rotate: ``mscale``
    of yarn, ``_scale`` of longrope."""
    scale: float = getattr(rope, "mscale", getattr(rope, "_scale", 1.0))
    return scale


class WindowAttention(nn.Module):
    """A base model's attention, over window and sinks.

    It is a subclass of the base's class too, and runs its code, which is handed a view
    of the ring in place of its KV cache, and the view's mask. An attention without keys
    of its own is handed the views of the layer whose keys it reads.

    Args:
        base (nn.Module): the attention layer of an mlx-lm model. Its parameters are
            used as they are, under their own names.
        config (AllMemConfig): window, sinks, chunk and positions.
        family (Family): the base's family.
    """

    def __init__(self, base: nn.Module, config: AllMemConfig, family: Family):
        kind, (outer, inner) = type(base), family.adapters
        for each in filter(None, (inner, type(self), outer)):
            kind = subclass(each, kind)
        self.__class__ = kind  # type: ignore[assignment]
        nn.Module.__init__(self)
        vars(self).update(vars(base))
        dict.update(self, base)
        self.config = config
        self.family = family

    def turn(self, keys: mx.array, distance: Any) -> mx.array:
        """Moves rotated keys by a number of positions.

        Args:
            keys (mx.array): ``[B, heads, T, d]``.
            distance (int | mx.array): distance in tokens; one for all, or ``[B]``.
        """
        if not self.family.rotates(self):
            return keys
        B, n, T, d = keys.shape
        # One row per key, so that each is rotated by the same angle.
        turned = self.rope(keys.reshape(B, n * T, 1, d), offset=distance)
        # Yarn and longrope also scale what they rotate; these were scaled before.
        if (scale := rope_scale(self.rope)) != 1.0:
            dims = getattr(self.rope, "dims", None) or self.rope.dim
            turned = turned.at[..., :dims].multiply(1 / scale)
        return turned.reshape(B, n, T, d)

    @property
    def borrows(self) -> bool:
        """Whether it has no keys and values, and reads those of another layer."""
        return self.family.borrows is not None and self.family.borrows(self)

    def make_cache(self, with_memory: bool = True) -> HybridCache:
        """A state that has read nothing. Only a hybrid has a memory."""
        size = self.config.sinks + self.config.window
        return HybridCache(RotatingKVCache(max_size=size, keep=self.config.sinks))

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Attends to the ring and to the T new tokens, then keeps them.

        Args:
            x (mx.array): ``[B, T, D]``, a part of one chunk or whole chunks.
            mask: not used; the layer makes its own.
            cache (HybridCache): the layer's state, whose ring is updated in place; for
                an attention that borrows, that of the layer that has the keys.

        Returns:
            mx.array: ``[B, T, D]``.
        """
        if self.borrows:
            views: Iterable[Past] = cache.lent
        else:
            views, cache.lent = self._views(cache, *x.shape[:2]), []
        attended, start = [], 0
        for view in views:
            part = x[:, start : start + view.tokens]
            attended.append(view.restored(self._attend(view.rows(part), view)))
            start += view.tokens
        return attended[0] if len(attended) == 1 else mx.concatenate(attended, axis=1)

    def _views(self, cache: HybridCache, batch: int, tokens: int) -> Iterator[Past]:
        """Views of the ring for the tokens that come next, each of which is used before
        the next one is made."""
        ring, end = cache.ring, cache.ring.offset + tokens
        slots, chunk = self.config.sinks + self.config.window, self.config.chunk
        while (rest := end - ring.offset) > 0:
            if rest <= chunk or end <= slots + chunk:
                view = Past(ring, self, rest)
            elif ring.offset >= slots:
                view = Tiles(ring, self, batch, rest // chunk)
            else:
                view = Past(ring, self, chunk)
            if self.family.borrows is not None:
                cache.lent.append(view)
            yield view

    def _attend(self, x: mx.array, view: Past) -> mx.array:
        mask = view.mask(x.shape[1], self.family.array_mask)
        return super().__call__(x, mask, view)  # type: ignore[misc]
