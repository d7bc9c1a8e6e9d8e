"""A kernel that was compiled, and its launches."""

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core
import numpy as np

from .errors import MetalError
from .rewrite import entry, rewrite, signature
from .toolchain import HERE, cache_folder, cached, check, run, toolchain

RUNTIME = HERE / "runtime"
STDLIB = HERE / "stdlib"
MAX_BUFFERS = 31
MAX_THREADS = 1024
SCHEDULES = ("forward", "reverse", "random")
STANDARD_HEADERS = (
    "atomic common compute geometric integer limits math matrix numeric pack "
    "relational simdgroup simdgroup_matrix stdlib type_traits uniform utility"
).split()
# What MLX puts before a kernel.
PRELUDE = '#include "mlx/backend/metal/kernels/utils.h"\n#line 1 "kernel"\n'

# The same results on every machine: no newer instructions than these, half and bfloat
# rounded after every operation, no addition fused with a multiplication.
COMPILE = [
    *(["-march=x86-64-v3"] if platform.machine() == "x86_64" else []),
    *["-x", "c++", "-std=c++17", "-nostdinc", "-fPIC", "-w", "-gline-tables-only"],
    *["-gdwarf-4", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"],
    *["-ffp-contract=off", "-Xclang", "-ffloat16-excess-precision=none"],
    *["-Xclang", "-fbfloat16-excess-precision=none"],
    "-fstack-clash-protection",  # too large an array meets the page below the stack
]
MODES = {
    "fast": ["-O2"],
    "check": [
        *["-O1", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize=thread"],
        *["-mllvm", "-tsan-instrument-func-entry-exit=0"],
        *["-mllvm", "-tsan-instrument-read-before-write=1"],
        "-fsanitize=bounds,shift,integer-divide-by-zero,signed-integer-overflow,"
        "float-cast-overflow,bool,alignment,implicit-integer-truncation,"
        "implicit-integer-sign-change",
        "-fsanitize-recover=all",
    ],
}


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("output", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
        ("unwritten", ctypes.c_uint64),
        ("origin", ctypes.c_uint64),
        ("reached", ctypes.c_void_p),
    ]


class _Options(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint32) for n in ("check", "schedule", "seed", "last")]


class _Result(ctypes.Structure):
    _fields_ = [
        *[
            (n, ctypes.c_uint64)
            for n in (
                "threadgroups",
                "barriers",
                "simd_barriers",
                "simd_ops",
                "threadgroup_bytes",
                "threadgroup_loaded",
                "threadgroup_stored",
            )
        ],
        ("diagnostics", ctypes.c_uint32),
        ("faulted", ctypes.c_uint32),
    ]


class _Diagnostic(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("address", ctypes.c_size_t),
        ("line", ctypes.c_int),
        ("column", ctypes.c_int),
        ("count", ctypes.c_uint64),
        ("message", ctypes.c_char * 400),
    ]


@dataclass(frozen=True)
class Buffer:
    """An argument of a launch.

    Args:
        name (str): what the kernel calls it.
        data (array): its memory.
        output (bool): may the kernel write to it?
        initialised (bool): an output that is not is filled with NaN.
        origin (int): the byte to which the kernel's pointer points.
        reached (array): whether a byte is part of an element; all are if there is none.
    """

    name: str
    data: np.ndarray
    output: bool = False
    initialised: bool = True
    origin: int = 0
    reached: np.ndarray | None = None


def _texts(files: Iterable[Path]) -> list[str]:
    return [path.read_text() for path in sorted(files)]


@cache
def _runtime() -> ctypes.PyDLL:
    def build(path: Path) -> None:
        flags = ["-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti"]
        command = [*toolchain().system_clang, *flags, "-c"]
        command += [str(RUNTIME / "runtime.cpp")]
        check(run([*command, "-o", f"{path}.o"]), "compiling the runtime")
        check(run([*toolchain().link, f"{path}.o", "-o", str(path)]), "linking")

    path = cached("runtime.so", _texts(RUNTIME.iterdir()), build)
    # Global, for the kernels to find it. It keeps the interpreter's lock: one runs at
    # a time.
    library = ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.host_run.restype = ctypes.POINTER(_Result)
    library.host_diagnostics.restype = ctypes.POINTER(_Diagnostic)
    library.host_base.restype = ctypes.c_size_t
    return library


def preprocess(text: str, includes: Sequence[str | Path] = ()) -> str:
    """Expands macros and headers; lines keep their numbers in files."""
    headers = cache_folder() / "headers"
    headers.mkdir(exist_ok=True)
    for name in STANDARD_HEADERS:
        (headers / f"metal_{name}").touch()  # all of it is declared beforehand
    command = [*toolchain().clang, "-E", "-x", "c++", "-std=c++17", "-nostdinc"]
    command += ["-undef", "-D__METAL__", "-D__METAL_VERSION__=310"]
    for folder in [*includes, headers]:
        command += ["-I", str(folder)]
    text = check(run([*command, "-"], text), "preprocessing")

    def line(found: re.Match) -> str:
        number, file = found.groups()
        return f'#line {number} "{"kernel" if file.startswith("<") else file}"'

    return re.sub(r'^# (\d+) "([^"]*)".*$', line, text, flags=re.M)


def cpp(source: str) -> str:
    """A text that MLX has written, as C++."""
    mlx_headers = Path(mlx.core.__file__).parent / "include"
    return rewrite(preprocess(PRELUDE + source, [HERE / "include", mlx_headers]))


class Library:
    """The kernel of a text that MLX has written, compiled for a mode.

    Args:
        source (str): the text.
        mode (str): ``"fast"``, or ``"check"`` to look for mistakes and count bytes.
    """

    def __init__(self, source: str, mode: str):
        self.source = source
        self.mode = mode
        self.signature = signature(source)
        text = cpp(source) + entry(self.signature)
        flags = [*COMPILE, *MODES[mode]]
        headers = [*STDLIB.glob("*.h"), RUNTIME / "runtime.h"]

        def build(path: Path) -> None:
            command = [*toolchain().clang, *flags, "-include", str(STDLIB / "metal.h")]
            command += ["-c", "-", "-o", f"{path}.o"]
            check(run(command, text), f"compiling {self.signature.name}")
            check(run([*toolchain().link, f"{path}.o", "-o", str(path)]), "linking")

        self.path = cached("kernel.so", [text, *flags, *_texts(headers)], build)
        self.runtime = _runtime()
        self.function = ctypes.CDLL(str(self.path)).host_kernel

    def run(
        self,
        buffers: Sequence[Buffer],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        schedule: str = "forward",
        seed: int = 0,
        last: int = 0,
    ) -> dict[str, Any]:
        """Runs the kernel over a grid of threads; outputs are written in place.

        Of the threadgroups only the ``last`` are run, if it is not 0.

        Returns:
            dict: what is counted and found, by the names that ``Launch`` has for it.
        """
        if len(buffers) > MAX_BUFFERS:
            raise MetalError(f"{len(buffers)} buffers; Metal has {MAX_BUFFERS}")
        if not 0 < np.prod(threadgroup) <= MAX_THREADS:
            raise MetalError(f"threadgroups of {threadgroup}: at most {MAX_THREADS}")
        described = (_Buffer * len(buffers))(
            *(
                _Buffer(
                    b.data.ctypes.data,
                    b.data.nbytes,
                    b.name.encode(),
                    b.output,
                    b.initialised,
                    origin=b.origin,
                    reached=None if b.reached is None else b.reached.ctypes.data,
                )
                for b in buffers
            )
        )
        size = ctypes.c_uint32 * 3
        options = _Options(self.mode == "check", SCHEDULES.index(schedule), seed, last)
        result = self.runtime.host_run(
            self.function,
            described,
            len(buffers),
            size(*grid),
            size(*threadgroup),
            ctypes.byref(options),
        ).contents
        done = {name: getattr(result, name) for name, _ in _Result._fields_}
        done["loaded"] = {b.name.decode(): b.loaded for b in described}
        done["stored"] = {b.name.decode(): b.stored for b in described}
        done["diagnostics"] = self._diagnostics(result.diagnostics)
        if not done.pop("faulted"):
            done["diagnostics"] += [
                f"unwritten: {b.unwritten} bytes of output '{b.name.decode()}'"
                for b in described
                if b.unwritten
            ]
        return done

    def _diagnostics(self, count: int) -> list[str]:
        found = self.runtime.host_diagnostics()[:count]
        places = self._places({d.address for d in found if d.address})
        lines = []
        for d in found:
            place = places.get(d.address, f"kernel:{d.line}" if d.line else "")
            if number := re.fullmatch(r"kernel:(\d+)", place):
                line = self.source.splitlines()[int(number[1]) - 1]
                place = f"line {number[1]} `{line.strip()}`"
            elif d.address and not place:
                place = "an unknown line"
            where = f" at {place}" if place else ""
            times = f" ({d.count} times)" if d.count > 1 else ""
            message = d.message.decode(errors="replace")
            lines.append(f"{d.kind.decode()}{where}: {message}{times}")
        return lines

    def _places(self, addresses: set[int]) -> dict[int, str]:
        """File and line of addresses in the kernel's code, where binutils can tell."""
        tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
        if not addresses or not tool:
            return {}
        base = self.runtime.host_base(self.function)
        # The address is that of the instruction after the call.
        order = sorted(addresses)
        command = [tool, "-a", "-i", "-e", str(self.path)]
        command += [hex(address - base - 1) for address in order]
        output = subprocess.run(command, capture_output=True, text=True).stdout
        places = {}
        found = re.split("^0x.*\n", output, flags=re.M)[1:]
        for address, frames in zip(order, found, strict=False):
            for frame in frames.splitlines():  # from the innermost inlined function out
                file, line = frame.split(" (")[0].rsplit(":", 1)
                if Path(file).parent != STDLIB and line.isdigit() and int(line):
                    places[address] = (
                        f"kernel:{line}" if Path(file).name == "kernel" else frame
                    )
                    break
        return places
