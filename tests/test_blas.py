"""MKL takes the place of MLX's own BLAS, where it is installed."""

import platform
import sys
from importlib import metadata

import pytest
from processes import run

from allmem_mlx import blas


def output(code: str) -> str:
    result = run("-c", code, fresh=True)
    assert result.returncode == 0 and not result.stderr, result.stderr.decode()
    return result.stdout.decode()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the cpu extra has MKL on x86-64 Linux only",
)
def test_importing_the_package_is_enough():
    """And what MLX computes with it is a product."""
    out = output(
        "import allmem_mlx, mlx.core as mx\n"
        "x = mx.random.normal((64, 64))\n"
        "error = mx.abs(x @ x - (x[:, :, None] * x[None]).sum(1)).max().item()\n"
        "print('libmkl_core' in open('/proc/self/maps').read(), error < 1e-4)"
    )
    assert out == "True True\n"


def test_silent_without_it():
    out = output(
        "from importlib import metadata\n"
        "def files(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.files = files\n"
        "import allmem_mlx; print(allmem_mlx.blas.use_mkl())"
    )
    assert out == "False\n"


def test_too_late():
    out = output("import mlx.core, allmem_mlx; print(allmem_mlx.blas.use_mkl())")
    assert out == "False\n"


@pytest.mark.parametrize("files", [None, []])
def test_a_package_without_the_library(monkeypatch, files):
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.setattr(metadata, "files", lambda name: files)
    assert blas.use_mkl() is False
