"""Sliding-window attention with sinks, around a base model's own attention.

A query sees itself, the ``window - 1`` tokens before it and the first ``sinks`` tokens
of the document (AllMem, arXiv 2602.13680; the mask is AHN's). Keys and values live in
a ring of fixed size (``ring.py``).
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import AllMemConfig
from .families import Family
from .patches import specialize
from .ring import Past, Tiles


class WindowAttention(nn.Module):
    """A base model's attention, over window and sinks.

    It is a subclass of the base's class too, and runs its code, which is handed a ring
    in place of its KV cache, and the ring's mask.

    Args:
        base (nn.Module): the attention layer of an mlx-lm model. Its parameters are
            used as they are, under their own names.
        config (AllMemConfig): window, sinks, chunk and positions.
        family (Family): the base's family.
    """

    def __init__(self, base: nn.Module, config: AllMemConfig, family: Family):
        specialize(self, type(self), type(base))
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
        # Yarn also scales what it rotates; these were scaled before.
        if (scale := getattr(self.rope, "mscale", 1.0)) != 1.0:
            turned = turned.at[..., : self.rope.dims].multiply(1 / scale)
        return turned.reshape(B, n, T, d)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Attends to the ring and to the T new tokens, then keeps them.

        Args:
            x (mx.array): ``[B, T, D]``, a part of one chunk or whole chunks.
            mask: not used; the layer makes its own.
            cache (HybridCache): the layer's state; its ring is updated in place.

        Returns:
            mx.array: ``[B, T, D]``.
        """
        B, T, _ = x.shape
        ring = cache[0]
        slots, chunk = self.config.sinks + self.config.window, self.config.chunk
        if T <= chunk or ring.offset + T <= slots + chunk:
            return self._attend(x, Past(ring, self, T))
        if ring.offset >= slots:
            tiles = T // chunk
            rows = x.reshape(B * tiles, chunk, -1)
            return self._attend(rows, Tiles(ring, self, B, tiles)).reshape(B, T, -1)
        parts = mx.split(x, range(chunk, T, chunk), axis=1)
        attended = [self._attend(part, Past(ring, self, chunk)) for part in parts]
        return mx.concatenate(attended, axis=1)

    def _attend(self, x: mx.array, past: Past) -> mx.array:
        mask = past.mask(x.shape[1], self.family.array_mask)
        return super().__call__(x, mask, past)  # type: ignore[misc]
