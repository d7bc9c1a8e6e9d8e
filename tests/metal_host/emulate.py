"""A stand-in for ``mx.fast.metal_kernel`` that runs kernels on a CPU."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .errors import MetalError
from .library import MODES, SCHEDULES, Buffer, Library
from .rewrite import signature

metal_kernel = mx.fast.metal_kernel


@dataclass
class Launch:
    """What a launch of a kernel did.

    Bytes are counted in check mode only, in the code as clang has optimised it at -O1:
    what a thread still holds in a register is not loaded again.

    Args:
        name (str): the kernel's name, with what MLX appends to it.
        source (str): the text that MLX has written.
        grid (tuple): threads.
        threadgroup (tuple): threads of a threadgroup.
        threadgroups (int): number of them in the grid.
        loaded (dict): bytes loaded from each buffer, by all threads.
        stored (dict): bytes stored to each buffer.
        threadgroup_bytes (int): size of the threadgroup memory.
        threadgroup_loaded (int): bytes loaded from threadgroup memory.
        threadgroup_stored (int): bytes stored to threadgroup memory.
        barriers (int): threadgroup barriers, summed over threadgroups.
        simd_barriers (int): simdgroup barriers, summed over simdgroups.
        simd_ops (int): other simdgroup functions, those of matrices included.
        diagnostics (list): notes; anything worse was raised.
    """

    name: str
    source: str
    grid: tuple[int, ...]
    threadgroup: tuple[int, ...]
    threadgroups: int = 0
    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    threadgroup_bytes: int = 0
    threadgroup_loaded: int = 0
    threadgroup_stored: int = 0
    barriers: int = 0
    simd_barriers: int = 0
    simd_ops: int = 0
    diagnostics: list[str] = field(default_factory=list)


@dataclass
class _Options:
    mode: str
    schedule: str
    seed: int
    last: int
    launches: list[Launch]


_active: list[_Options] = []


@contextmanager
def emulated(
    mode: str = "fast", schedule: str = "forward", seed: int = 0, last: int = 0
) -> Iterator[list[Launch]]:
    """Lets ``mx.fast.metal_kernel`` make kernels that run on the CPU.

    Args:
        mode (str): ``"fast"``, or ``"check"`` to find mistakes and count bytes.
        schedule (str): the order in which threads and threadgroups run, ``"forward"``,
            ``"reverse"`` or ``"random"``.
        seed (int): of the random order.
        last (int): how many threadgroups are run of each launch, the last ones; all if
            it is 0. Indices that only a large grid has are so tried in little time; the
            rest of the outputs is not written.

    Yields:
        list: a :class:`Launch` for each call of a kernel, as they come.

    A kernel that was made in one block runs as the innermost block says in which it is
    called.
    """
    if mode not in MODES or schedule not in SCHEDULES:
        raise ValueError(f"mode {mode!r} or schedule {schedule!r} does not exist")
    real = mx.fast.metal_kernel, mx.metal.is_available
    options = _Options(mode, schedule, seed, last, [])
    _active.append(options)
    mx.fast.metal_kernel, mx.metal.is_available = EmulatedKernel, lambda: True
    try:
        yield options.launches
    finally:
        mx.fast.metal_kernel, mx.metal.is_available = real
        _active.pop()


class EmulatedKernel:
    """What ``mx.fast.metal_kernel`` returns, for a CPU; the arguments are the same."""

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: dict[str, Any] | None = None,
    ):
        self.input_names = list(input_names)
        self.output_names = list(output_names)
        self.ensure_row_contiguous = ensure_row_contiguous
        self.kernel = metal_kernel(
            name=name,
            input_names=self.input_names,
            output_names=self.output_names,
            source=source,
            header=header,
            ensure_row_contiguous=ensure_row_contiguous,
            atomic_outputs=atomic_outputs,
            compile_options=compile_options,
        )

    def source_of(self, *, inputs: Sequence[Any], **call: Any) -> str:
        """The text that MLX writes for a call."""
        call = {k: v for k, v in call.items() if k not in ("verbose", "stream")}
        return _trace(self.kernel, _arrays(inputs), call)

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        if not _active:
            raise MetalError("an emulated kernel runs inside `with emulated():`")
        options = _active[-1]
        arrays = _arrays(inputs)
        source = self.source_of(
            inputs=arrays,
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            grid=grid,
            threadgroup=threadgroup,
            template=template,
            init_value=init_value,
        )
        if verbose:
            print(source)
        size = tuple(map(min, threadgroup, grid))
        launch = Launch(signature(source).name, source, tuple(grid), size)
        options.launches.append(launch)
        library = _library(source, options.mode)
        values = dict(zip(self.input_names, map(_to_numpy, arrays), strict=True))
        if self.ensure_row_contiguous:
            values = {name: _row_contiguous(x) for name, x in values.items()}
        outputs = {}
        for name, shape, dtype in zip(
            self.output_names, output_shapes, output_dtypes, strict=True
        ):
            outputs[name] = _to_numpy(mx.full(shape, init_value or 0, dtype)).copy()
        if 0 not in grid:
            buffers = [
                Buffer(name, outputs[name], True, init_value is not None)
                if name in outputs
                else _input(name, _argument(name, values))
                for name in library.signature.buffers
            ]
            order = options.schedule, options.seed, options.last
            done = library.run(buffers, grid, size, *order)
            for name, value in done.items():
                setattr(launch, name, value)
            if any(not d.startswith("note") for d in launch.diagnostics):
                raise MetalError("\n".join([launch.name, *launch.diagnostics]))
        return [
            _from_numpy(outputs[name], dtype)
            for name, dtype in zip(self.output_names, output_dtypes, strict=True)
        ]


def source_of(kernel: EmulatedKernel, **call: Any) -> str:
    """The text that MLX writes for a call of a kernel, without running it."""
    return kernel.source_of(**call)


@cache
def _library(source: str, mode: str) -> Library:
    return Library(source, mode)


def _arrays(inputs: Sequence[Any]) -> list[mx.array]:
    return [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]


def _trace(kernel: Callable, arrays: list[mx.array], call: dict[str, Any]) -> str:
    """Lets MLX write the kernel's text: exporting a function traces its kernels, which
    needs no Metal, and ``verbose`` prints them, from C++."""

    def function(*inputs: mx.array) -> Any:
        return kernel(inputs=list(inputs), verbose=True, **call)

    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open(Path(folder, "text"), "w") as file:
                os.dup2(file.fileno(), 1)
            mx.export_function(str(Path(folder, "function")), function, *arrays)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        text = Path(folder, "text").read_text()
    found = re.search(
        r"^Generated source code for `.*?`:\n```\n(.*)\n```\n", text, re.S
    )
    if not found:
        raise MetalError(f"MLX wrote no kernel, but:\n{text}")
    return found[1]


def _argument(name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    """An input, or the shape, the strides or the number of dimensions of one."""
    if name in values:
        return values[name]
    base, _, what = name.rpartition("_")
    x = values[base]
    if what == "shape":
        return np.array(x.shape, np.int32)
    if what == "strides":
        return np.array([s // x.itemsize for s in x.strides], np.int64)
    return np.array(x.ndim, np.int32)


def _to_numpy(x: mx.array) -> np.ndarray:
    """The array's own memory, whatever its strides; bfloat16 as its bits, which NumPy
    has no type for."""
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)


def _row_contiguous(x: np.ndarray) -> np.ndarray:
    """As MLX copies an array; one that needs no copy keeps its strides, of which those
    of dimensions of size 1 may be any."""
    return x if x.flags.c_contiguous else x.copy(order="C")


def _input(name: str, x: np.ndarray) -> Buffer:
    """The memory from the first to the last element that an array has.

    What lies between elements belongs to other arrays: all its bits are set, so that it
    is NaN, and check mode does not let it be read.
    """
    if x.flags.c_contiguous:
        return Buffer(name, x)
    steps = [stride * (n - 1) for n, stride in zip(x.shape, x.strides, strict=True)]
    origin = -sum(min(step, 0) for step in steps)
    size = origin + sum(max(step, 0) for step in steps) + x.itemsize
    memory, reached = np.full(size, 0xFF, np.uint8), np.zeros(size, np.bool_)
    np.ndarray(x.shape, x.dtype, memory, origin, x.strides)[...] = x
    element_bytes = np.ndarray(
        (*x.shape, x.itemsize), np.bool_, reached, origin, (*x.strides, 1)
    )
    element_bytes[...] = True
    return Buffer(name, memory, origin=origin, reached=reached)


def _from_numpy(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(x).view(dtype) if dtype == mx.bfloat16 else mx.array(x)
