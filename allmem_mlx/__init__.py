"""Read documents of any length in constant memory: AllMem (arXiv 2602.13680) on MLX."""

import importlib
from typing import Any

from . import blas
from .version import __version__

blas.use_mkl()

__all__ = ["__version__", "generate", "load", "stream_generate"]

# Resolved on first use: mlx-lm, and with it transformers, takes seconds to import.
_API = {
    "load": "loading",
    "generate": "streaming",
    "stream_generate": "streaming",
}


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_API[name]}", __name__), name)
