"""Keys and values of window and sinks, handed to a base model's attention in place of
its KV cache.

They live in a ring of fixed size: token t is in slot t while that is free, then in slot
``sinks + (t - sinks) % window``. With 2 sinks and a window of 6, before token 11:

    slot     0   1   2   3   4   5   6   7
    token    0   1   8   9  10   5   6   7      11 takes the place of 5, the oldest
             sinks   window

Positions are bounded (:meth:`AllMemConfig.shift`): where they move, at the beginning of
a chunk, the window's keys are turned and the sinks stay, so that the distance between
the two stays bounded.
"""

from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np


@lru_cache(maxsize=64)
def window_mask(tokens: int, past: int, window: int, sinks: int) -> mx.array:
    """The mask of ``tokens`` new tokens over what the ring held and themselves.

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


class Past:
    """The ring, for T tokens of which none sees positions moved between them: those of
    one chunk, or those before the window is full.

    Args:
        ring (RotatingKVCache): storage for keys, values and the number of tokens read,
            updated in place. Only the slot order of this module is understood.
        attention (WindowAttention): whose ring it is.
        tokens (int): T.
    """

    def __init__(self, ring: Any, attention: nn.Module, tokens: int):
        self.ring, self.attention, self.config = ring, attention, attention.config
        self.token, self.tokens = ring.offset, tokens
        self.shift = self.config.shift(self.token + tokens - 1)
        self.offset: Any = self.token - self.shift  # where RoPE puts the next token

    @property
    def slots(self) -> int:
        return self.config.sinks + self.config.window

    @property
    def turned(self) -> int:
        """Positions by which the window's keys move down before the T tokens come."""
        return self.shift - self.config.shift(self.token - 1)

    def rows(self, x: mx.array) -> mx.array:
        """The T tokens ``[B, T, D]`` as the rows that attend."""
        return x

    def restored(self, rows: mx.array) -> mx.array:
        """The rows of :meth:`rows` as the T tokens, ``[B, T, D]``."""
        return rows

    def mask(self, tokens: int, as_array: bool) -> Any:
        """The mask of the next T tokens."""
        if tokens == 1:
            return None
        if self.token + tokens <= self.slots and not as_array:
            return "causal"
        past = min(self.token, self.slots)
        return window_mask(tokens, past, self.config.window, self.config.sinks)

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Keeps the keys and values of T tokens, ``[B, heads, T, d]``, and returns
        them with those they see."""
        self._fetched = self._update_and_fetch(keys, values)
        return self._fetched

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What :meth:`update_and_fetch` returned, for layers that read it too."""
        return self._fetched

    def _update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        ring, T = self.ring, keys.shape[2]
        if ring.keys is None:
            shape = (*keys.shape[:2], self.slots)
            ring.keys = mx.zeros((*shape, keys.shape[-1]), keys.dtype)
            ring.values = mx.zeros((*shape, values.shape[-1]), values.dtype)
        elif self.turned:
            sinks, window = mx.split(ring.keys, [self.config.sinks], axis=2)
            window = self.attention.turn(window, -self.turned)
            ring.keys = mx.concatenate([sinks, window], axis=2)

        old_keys, old_values = ring.keys, ring.values
        ring.keys = self._write(old_keys, keys)
        ring.values = self._write(old_values, values)
        ring.offset = self.token + T
        if T == 1:
            # The slot it was written to is the one that just left the window.
            seen = min(self.token + 1, self.slots)
            return ring.keys[:, :, :seen], ring.values[:, :, :seen]
        return (
            mx.concatenate([*self._in_order(old_keys), keys], axis=2),
            mx.concatenate([*self._in_order(old_values), values], axis=2),
        )

    def _write(self, slots: mx.array, new: mx.array) -> mx.array:
        sinks, window, token = self.config.sinks, self.config.window, self.token
        end = token + new.shape[2]
        slots = slots[...]  # the old ring stays as it was
        # Tokens that these themselves push out again are not written.
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
        """The tokens in the ring before this call, oldest first, in parts."""
        sinks, window, token = self.config.sinks, self.config.window, self.token
        if token <= sinks + window:
            return [slots[:, :, :token]]
        oldest = sinks + (token - sinks) % window
        if oldest == sinks:
            return [slots]
        return [slots[:, :, :sinks], slots[:, :, oldest:], slots[:, :, sinks:oldest]]


class Tiles(Past):
    """A full ring, for several chunks at once, each of which is a row of the batch.

    So every chunk's queries meet a slice of keys of their own, and nothing is scored
    that no query of the chunk sees. All keys are where the last chunk has them. RoPE is
    relative, so a chunk sees its window as it is; but the sinks, which keep their
    places while positions move, it sees in a copy of its own.

    Args:
        ring, attention: see :class:`Past`.
        batch (int): B, documents.
        tiles (int): chunks.
    """

    def __init__(self, ring: Any, attention: nn.Module, batch: int, tiles: int):
        self.batch, self.tiles, self.chunk = batch, tiles, attention.config.chunk
        super().__init__(ring, attention, tiles * self.chunk)
        self._starts = range(self.token, self.token + tiles * self.chunk, self.chunk)
        self.offset = self._of_rows([start - self.shift for start in self._starts])

    def rows(self, x: mx.array) -> mx.array:
        """See :class:`Past`; ``[B tiles, chunk, D]``."""
        return x.reshape(self.batch * self.tiles, self.chunk, -1)

    def restored(self, rows: mx.array) -> mx.array:
        """See :class:`Past`."""
        return rows.reshape(self.batch, self.tokens, -1)

    def mask(self, tokens: int, as_array: bool) -> mx.array:
        """The mask of every chunk."""
        return window_mask(tokens, self.slots, self.config.window, self.config.sinks)

    def _of_rows(self, numbers: list[int]) -> mx.array:
        """A number for each chunk, as one for each row of the batch."""
        return mx.array(numbers * self.batch)

    def _update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        """See :class:`Past`; ``[B tiles, heads, chunk, d]``."""
        ring, sinks = self.ring, self.config.sinks
        kept, window = mx.split(ring.keys, [sinks], axis=2)
        if self.turned:
            window = self.attention.turn(window, -self.turned)
        held = self._line_up(window, keys)
        ring.keys = self._ring(kept, held)
        keys = self._seen(self._turned_sinks(kept), held)

        kept, window = mx.split(ring.values, [sinks], axis=2)
        held = self._line_up(window, values)
        ring.values = self._ring(kept, held)
        values = self._seen(self._copies(kept), held)
        ring.offset = self.token + self.tiles * self.chunk
        return keys, values

    def _line_up(self, window: mx.array, new: mx.array) -> mx.array:
        """The window's tokens and the new ones, oldest first,
        ``[B, heads, window + T, d]``."""
        _, n, c, d = new.shape
        new = new.reshape(self.batch, self.tiles, n, c, d).swapaxes(1, 2)
        new = new.reshape(self.batch, n, -1, d)
        oldest = (self.token - self.config.sinks) % self.config.window
        parts = [window[:, :, oldest:], window[:, :, :oldest], new]
        return mx.concatenate(parts, axis=2)

    def _ring(self, sinks: mx.array, held: mx.array) -> mx.array:
        """The ring, with the newest tokens in line."""
        window = self.config.window
        newest = held[:, :, -window:]
        end = self.token + self.tiles * self.chunk
        first = window - (end - self.config.sinks) % window  # what comes into slot 0
        # Of one part alone this would be a slice, which keeps all that is lined up.
        parts = [sinks, newest[:, :, first:], newest[:, :, :first]]
        return mx.concatenate(parts, axis=2)

    def _copies(self, sinks: mx.array) -> mx.array:
        """``[B tiles, heads, sinks, d]``."""
        B, *rest = sinks.shape
        copies = mx.broadcast_to(sinks[:, None], (B, self.tiles, *rest))
        return copies.reshape(B * self.tiles, *rest)

    def _turned_sinks(self, sinks: mx.array) -> mx.array:
        """The sinks as each chunk sees them: as far from it as they were."""
        copies = self._copies(sinks)
        moved = [self.config.shift(start) - self.shift for start in self._starts]
        if not any(moved) or not self.config.sinks:
            return copies
        return self.attention.turn(copies, self._of_rows(moved))

    def _seen(self, sinks: mx.array, held: mx.array) -> mx.array:
        """The tokens that each chunk sees,
        ``[B tiles, heads, sinks + window + chunk, d]``."""
        B, n, length, d = held.shape
        columns = self.config.window + self.chunk
        # Slices that overlap: a chunk's begins a chunk after that of the one before it.
        slices = mx.as_strided(
            held,
            (B, self.tiles, n, columns, d),
            (n * length * d, self.chunk * d, length * d, d, 1),
        ).reshape(B * self.tiles, n, columns, d)
        if not self.config.sinks:
            return slices
        return mx.concatenate([sinks, slices], axis=2)
