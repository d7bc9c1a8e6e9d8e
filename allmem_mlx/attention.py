"""Sliding-window attention with sinks, around a base model's own attention.

A query sees itself, the ``window - 1`` tokens before it and the first ``sinks`` tokens
of the document (AllMem, arXiv 2602.13680; the mask is AHN's). Keys and values live in
a ring of fixed size. Positions are bounded: see :meth:`AllMemConfig.shift`.
"""

from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import AllMemConfig
from .corrections import subclass
from .families import Family


@lru_cache(maxsize=64)
def window_mask(tokens: int, past: int, window: int, sinks: int) -> mx.array:
    """Who sees whom when ``tokens`` new tokens meet what the ring held.

    How many tokens were read between the sinks and the window makes no difference, so
    that all layers and, in the end, all chunks share one mask.

    Args:
        tokens (int): new tokens, T.
        past (int): columns before them: sinks, then the newest tokens.
        window, sinks (int): sizes.

    Returns:
        mx.array: bool, ``[T, past + T]``.
    """
    key = np.arange(past + tokens)
    query = np.arange(past, past + tokens)[:, None]
    seen = (query - key < window) | (key < sinks)
    return mx.array((key <= query) & seen)


class _Past:
    """What a base model's attention takes for its cache: a ring, for one call.

    Args:
        ring (RotatingKVCache): storage for keys, values and the number of tokens read,
            updated in place. Only this class's slot order is understood: token t is in
            slot t while that is free, then in slot ``sinks + (t - sinks) % window``.
        attention (WindowAttention): whose ring it is.
    """

    def __init__(self, ring: Any, attention: "WindowAttention"):
        self.ring, self.attention, self.config = ring, attention, attention.config
        self.token = ring.offset
        self.shift = self.config.shift(self.token)
        self.offset = self.token - self.shift  # where RoPE puts the next token

    @property
    def _slots(self) -> int:
        return self.config.sinks + self.config.window

    def mask(self, tokens: int, as_array: bool) -> Any:
        """Who sees whom, for the next T tokens."""
        if tokens == 1:
            return None
        if self.token + tokens <= self._slots and not as_array:
            return "causal"
        past = min(self.token, self._slots)
        return window_mask(tokens, past, self.config.window, self.config.sinks)

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Keeps the keys and values of T tokens, ``[B, heads, T, d]``, and returns
        them with those they see."""
        ring, T = self.ring, keys.shape[2]
        if ring.keys is None:
            shape = (*keys.shape[:2], self._slots)
            ring.keys = mx.zeros((*shape, keys.shape[-1]), keys.dtype)
            ring.values = mx.zeros((*shape, values.shape[-1]), values.dtype)
        elif distance := self.shift - self.config.shift(self.token - 1):
            ring.keys = self._turn(ring.keys, distance)

        old_keys, old_values = ring.keys, ring.values
        ring.keys = self._write(old_keys, keys)
        ring.values = self._write(old_values, values)
        ring.offset = self.token + T
        if T == 1:
            # The slot it was written to is the one that just left the window.
            seen = min(self.token + 1, self._slots)
            return ring.keys[:, :, :seen], ring.values[:, :, :seen]
        return (
            mx.concatenate([*self._in_order(old_keys), keys], axis=2),
            mx.concatenate([*self._in_order(old_values), values], axis=2),
        )

    def _turn(self, slots: mx.array, distance: int) -> mx.array:
        """Moves the window's keys down by ``distance`` positions; sinks stay."""
        B, n, _, d = slots.shape
        sinks, window = mx.split(slots, [self.config.sinks], axis=2)
        # One row per key, so that each is rotated by the same angle.
        turned = self.attention.turn(window.reshape(B, -1, 1, d), -distance)
        return mx.concatenate([sinks, turned.reshape(B, n, -1, d)], axis=2)

    def _write(self, slots: mx.array, new: mx.array) -> mx.array:
        sinks, window, token = self.config.sinks, self.config.window, self.token
        end = token + new.shape[2]
        slots = slots[...]  # the old ring stays as it was
        # Tokens that the block itself pushes out again are not written.
        first = token if end <= sinks + window else max(token, end - window)
        if token < sinks:
            slots[:, :, token : min(end, sinks)] = new[:, :, : sinks - token]
            first = max(first, sinks)
        while first < end:
            slot = sinks + (first - sinks) % window
            count = min(end - first, sinks + window - slot)
            part = new[:, :, first - token : first - token + count]
            slots[:, :, slot : slot + count] = part
            first += count
        return slots

    def _in_order(self, slots: mx.array) -> list[mx.array]:
        """What the ring held before this call, oldest first, in parts."""
        sinks, window, token = self.config.sinks, self.config.window, self.token
        if token <= sinks + window:
            return [slots[:, :, :token]]
        oldest = sinks + (token - sinks) % window
        if oldest == sinks:
            return [slots]
        return [slots[:, :, :sinks], slots[:, :, oldest:], slots[:, :, sinks:oldest]]


class WindowAttention(nn.Module):
    """A base model's attention, over window and sinks.

    It is a subclass of the base's class too, and runs its code: what that takes for
    its cache and its mask is another.

    Args:
        base (nn.Module): the attention layer of an mlx-lm model. Its parameters are
            used as they are, under their own names.
        config (AllMemConfig): window, sinks, chunk and positions.
        family (Family): the base's family.
    """

    def __init__(self, base: nn.Module, config: AllMemConfig, family: Family):
        self.__class__ = subclass(type(self), type(base))
        nn.Module.__init__(self)
        vars(self).update(vars(base))
        dict.update(self, base)
        self.config = config
        self.family = family

    def turn(self, keys: mx.array, distance: int) -> mx.array:
        """Moves rotated keys by a number of positions.

        Args:
            keys (mx.array): ``[..., 1, d]``.
            distance (int): how far, in tokens.
        """
        if not self.family.rotates(self):
            return keys
        turned = self.rope(keys, offset=distance)
        # Yarn also scales what it rotates; these were scaled before.
        if (scale := getattr(self.rope, "mscale", 1.0)) != 1.0:
            turned = turned.at[..., : self.rope.dims].multiply(1 / scale)
        return turned

    def __call__(self, x: mx.array, ring: Any) -> mx.array:
        """Attends to the ring and to the T new tokens, then keeps them.

        Args:
            x (mx.array): ``[B, T, D]``, T tokens of one chunk.
            ring (RotatingKVCache): the layer's keys and values, updated in place.

        Returns:
            mx.array: ``[B, T, D]``.
        """
        past = _Past(ring, self)
        mask = past.mask(x.shape[1], self.family.array_mask)
        return super().__call__(x, mask, past)  # type: ignore[misc]
