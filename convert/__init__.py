"""Pretrained models as AllMem model folders: :func:`convert`.

The package is ``allmem_mlx.convert``; in a checkout, ``python -m convert`` runs it too.
"""

from typing import Any

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    # Imported on first use: mlx-lm, and with it transformers, takes seconds to import.
    if name == "convert":
        from allmem_mlx.convert.conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
