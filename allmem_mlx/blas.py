"""A fast BLAS for MLX on a Linux CPU.

The Linux wheel of MLX links the reference BLAS, about 70 times slower than MKL on
float32 products. A library that is loaded globally before ``mlx.core`` takes its
place, so this has to run before the first ``import mlx.core`` of a process.
"""

import ctypes
import sys
from importlib import metadata


def use_mkl() -> bool:
    """Load MKL, if it is installed (the ``cpu`` extra), in front of MLX's own BLAS.

    Returns:
        bool: whether MLX uses it. ``False`` without the package, on other systems,
        and when ``mlx.core`` was imported before.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        files = metadata.files("mkl") or []
        library = next(f for f in files if f.name.startswith("libmkl_rt.so"))
        ctypes.CDLL(str(library.locate()), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        return False
    return True
