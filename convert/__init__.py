"""Pretrained models as AllMem model folders: :func:`convert`.

The package is ``allmem_mlx.convert``. In a checkout its folder can also be run, as
``python -m convert``, which hands over to it.
"""

__all__ = ["convert"]


def __getattr__(name):
    # Imported on first use: mlx-lm, and with it transformers, takes seconds to import.
    if name == "convert":
        from allmem_mlx.convert.conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
