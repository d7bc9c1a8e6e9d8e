"""Pretrained models as AllMem model folders: :func:`convert`."""

__all__ = ["convert"]


def __getattr__(name):
    # Imported on first use: mlx-lm, and with it transformers, takes seconds to import.
    if name == "convert":
        from .conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
