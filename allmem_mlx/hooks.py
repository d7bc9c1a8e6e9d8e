"""Hooks that see the inputs of a module."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx


class Hooked:
    """A module with a forward pre-hook, in the place of the module alone.

    Args:
        module: any module.
        hook (Callable): is called with the arguments of each call, before it.
    """

    def __init__(self, module: Any, hook: Callable[..., None]):
        self._module, self._hook = module, hook

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        self._hook(x, *args, **kwargs)
        return self._module(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
