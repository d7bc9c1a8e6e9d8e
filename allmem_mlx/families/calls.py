"""Classes around and within a hybrid's attention, where a model file calls attention
otherwise than ``(x, mask, cache)``.
"""

from typing import Any

import mlx.core as mx


class Gemma3nInner:
    """Gemma 3n's attention, which is called with the offset beside the cache."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        return super().__call__(x, mask, cache, cache.offset)  # type: ignore[misc]


class Gemma3nOuter:
    """A hybrid's attention, called as Gemma 3n's."""

    def __call__(
        self, x: mx.array, mask: Any = None, cache: Any = None, offset: Any = None
    ) -> Any:
        return super().__call__(x, mask, cache)  # type: ignore[misc]


class Gemma4Inner:
    """Gemma 4's attention, which returns what a layer without keys of its own is called
    with."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if self.has_kv:  # type: ignore[attr-defined]
            shared = {}
        else:
            shared = {"shared_kv": cache.keys_and_values(), "offset": cache.offset}
            cache = None
        return super().__call__(x, mask, cache, **shared)[0]  # type: ignore[misc]


class Gemma4Outer:
    """A hybrid's attention, called as Gemma 4's. What it shares is its state."""

    def __call__(
        self,
        x: mx.array,
        mask: Any = None,
        cache: Any = None,
        shared_kv: Any = None,
        offset: Any = None,
    ) -> Any:
        cache = cache or shared_kv
        return super().__call__(x, mask, cache), cache, offset  # type: ignore[misc]


class Ministral3Inner:
    """Ministral 3's attention, which is called with the scale of its queries."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        return super().__call__(x, None, mask, cache)  # type: ignore[misc]


class Ministral3Outer:
    """A hybrid's attention, called as Ministral 3's. The scale of its queries follows
    from their places."""

    def __call__(
        self, x: mx.array, scale: Any = None, mask: Any = None, cache: Any = None
    ) -> Any:
        return super().__call__(x, mask, cache)  # type: ignore[misc]
