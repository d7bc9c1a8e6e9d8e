"""Sliding-window attention with sinks, around a base model's own projections.

A query sees itself, the ``window - 1`` tokens before it and the first ``sinks`` tokens
of the document (AllMem, arXiv 2602.13680; the mask is AHN's). Keys and values live in
a ring of fixed size. Positions are bounded: see :meth:`AllMemConfig.shift`.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from .config import AllMemConfig


def window_mask(tokens: int, past: int, total: int, config: AllMemConfig) -> mx.array:
    """Who sees whom when ``tokens`` new tokens meet what the ring held.

    Args:
        tokens (int): new tokens, T.
        past (int): columns before them, in the order of the document.
        total (int): tokens read before them.
        config (AllMemConfig): window and sinks.

    Returns:
        mx.array: bool, ``[T, past + T]``.
    """
    column = mx.arange(past + tokens)
    # The columns after the sinks are the newest tokens, without a gap.
    key = mx.where(column < min(config.sinks, total), column, column + total - past)
    query = mx.arange(total, total + tokens)[:, None]
    seen = (query - key < config.window) | (key < config.sinks)
    return (key <= query) & seen


class WindowAttention(nn.Module):
    """Attention over window and sinks with the weights of a base model's attention.

    Args:
        base (nn.Module): the attention layer of an mlx-lm model. Its projections,
            norms and rotary embedding are used as they are, under their own names.
        config (AllMemConfig): window, sinks, chunk and positions.
    """

    def __init__(self, base: nn.Module, config: AllMemConfig):
        super().__init__()
        for name, module in base.children().items():
            setattr(self, name, module)
        self.n_heads = base.n_heads
        self.n_kv_heads = base.n_kv_heads
        self.scale = base.scale
        self.config = config

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values, ``[B, heads, T, d]``, not yet rotated."""
        B, T, _ = x.shape
        queries = self.q_proj(x).reshape(B, T, self.n_heads, -1)
        keys = self.k_proj(x).reshape(B, T, self.n_kv_heads, -1)
        values = self.v_proj(x).reshape(B, T, self.n_kv_heads, -1)
        if "q_norm" in self:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return (
            queries.transpose(0, 2, 1, 3),
            keys.transpose(0, 2, 1, 3),
            values.transpose(0, 2, 1, 3),
        )

    def _rotate_ring(self, ring: Any, distance: int):
        """Moves the window's keys down by ``distance`` positions; sinks stay."""
        B, n, slots, d = ring.keys.shape
        sinks, window = mx.split(ring.keys, [self.config.sinks], axis=2)
        # One row per key, so that each is rotated by the same angle.
        window = self.rope(window.reshape(B, -1, 1, d), offset=-distance)
        window = window.reshape(B, n, slots - self.config.sinks, d)
        ring.keys = mx.concatenate([sinks, window], axis=2)

    def _write(self, slots: mx.array, new: mx.array, token: int) -> mx.array:
        """Puts new keys or values into the ring: token t goes to slot t while that
        is free, then to slot ``sinks + (t - sinks) % window``."""
        sinks, window = self.config.sinks, self.config.window
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

    def _in_order(self, slots: mx.array, token: int) -> mx.array:
        """What the ring holds after ``token`` tokens, oldest first."""
        sinks, window = self.config.sinks, self.config.window
        if token <= sinks + window:
            return slots[:, :, :token]
        oldest = sinks + (token - sinks) % window
        if oldest == sinks:
            return slots
        return mx.concatenate(
            [slots[:, :, :sinks], slots[:, :, oldest:], slots[:, :, sinks:oldest]],
            axis=2,
        )

    def __call__(self, x: mx.array, ring: Any) -> mx.array:
        """Attends to the ring and to the T new tokens, then keeps them.

        Args:
            x (mx.array): ``[B, T, D]``, T tokens of one chunk.
            ring (RotatingKVCache): storage for keys, values and the number of tokens
                read, updated in place. Only this class's slot order is understood.

        Returns:
            mx.array: ``[B, T, D]``.
        """
        B, T, _ = x.shape
        config, token = self.config, ring.offset
        queries, keys, values = self._project(x)
        shift = config.shift(token)
        queries = self.rope(queries, offset=token - shift)
        keys = self.rope(keys, offset=token - shift)

        if ring.keys is None:
            slots = (B, self.n_kv_heads, config.sinks + config.window)
            ring.keys = mx.zeros((*slots, keys.shape[-1]), keys.dtype)
            ring.values = mx.zeros((*slots, values.shape[-1]), values.dtype)
        elif distance := shift - config.shift(token - 1):
            self._rotate_ring(ring, distance)

        old_keys, old_values = ring.keys, ring.values
        ring.keys = self._write(old_keys, keys, token)
        ring.values = self._write(old_values, values, token)
        ring.offset = token + T

        mask: Any = None
        if T == 1:
            # The slot it was written to is the one that just left the window.
            keys = ring.keys[:, :, : token + 1]
            values = ring.values[:, :, : token + 1]
        else:
            old_keys = self._in_order(old_keys, token)
            keys = mx.concatenate([old_keys, keys], axis=2)
            old_values = self._in_order(old_values, token)
            values = mx.concatenate([old_values, values], axis=2)
            mask = "causal"
            if token + T > config.sinks + config.window:
                mask = window_mask(T, old_keys.shape[2], token, config)
        output = scaled_dot_product_attention(
            queries, keys, values, cache=None, scale=self.scale, mask=mask
        )
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(B, T, -1))
