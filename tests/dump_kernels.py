"""Writes the source of every kernel as MLX compiles it, for Apple's compiler.

    python tests/dump_kernels.py FOLDER

Each file includes MLX's own headers, which come with its wheel; the last line printed
is the folder to give to ``metal -I``.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import mlx
import mlx.core as mx
from kernel_cases import CASES, NAMES, Inputs
from metal_host import emulated, source_of

from allmem_mlx.memory import kernels


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    make = kernels._kernel

    def written(name: str, *signature, **options) -> Callable:
        """A kernel that is written to a file instead of run."""

        def call(**arguments) -> list[mx.array]:
            with emulated():
                source = source_of(make(name, *signature, **options), **arguments)
            text = f'#include "mlx/backend/metal/kernels/utils.h"\n{source}'
            (folder / f"{name}-{case}.metal").write_text(text)
            return [mx.zeros(()) for _ in arguments["output_shapes"]]

        return call

    kernels._kernel = written
    for case in CASES:
        for name in NAMES:
            getattr(kernels, name)(**Inputs(case).of(name))
    print(Path(next(iter(mlx.__path__))) / "include")


if __name__ == "__main__":
    main()
