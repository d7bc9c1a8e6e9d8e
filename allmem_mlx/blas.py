"""A fast BLAS for MLX on a Linux CPU.

The Linux wheel of MLX links the reference BLAS, many times slower than MKL on float32
products. A library that is loaded globally before ``mlx.core`` takes its place, so
this has to run before the first ``import mlx.core`` of a process.
"""

import ctypes
import os
import sys
from importlib import metadata

SEQUENTIAL = 1  # MKL_THREADING_SEQUENTIAL


def use_mkl() -> bool:
    """Load MKL, if it is installed (the ``cpu`` extra), in front of MLX's own BLAS.

    It runs on one thread, unless ``MKL_THREADING_LAYER`` says otherwise. Its threads
    wait for each other in every product, and the products of a decoded token are so
    small that with one other busy process on a machine of 2 cores a tiny model decodes
    50 times slower on two threads than on one.

    Returns:
        bool: whether MLX uses it. ``False`` without the package, on other systems,
        and when ``mlx.core`` was imported before.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        files = metadata.files("mkl") or []
        path = next(f for f in files if f.name.startswith("libmkl_rt.so"))
        library = ctypes.CDLL(str(path.locate()), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        return False
    if "MKL_THREADING_LAYER" not in os.environ:
        library.MKL_Set_Threading_Layer(SEQUENTIAL)
    return True
