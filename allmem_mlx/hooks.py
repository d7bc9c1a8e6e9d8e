"""Looking on while a model computes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx


class Tap:
    """In the place of a module: shows what it is given.

    Args:
        module: any module.
        show (Callable): is called with the arguments of each call before it.
    """

    def __init__(self, module: Any, show: Callable[..., None]):
        self._module, self._show = module, show

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        self._show(x, *args, **kwargs)
        return self._module(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
