"""A clang to compile kernels with, and the folder in which they are kept."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import MetalError

HERE = Path(__file__).parent
# Needs arithmetic in _Float16 and __bf16 on x86.
OLDEST_CLANG = 17
OLDEST_APPLE_CLANG = 16


@dataclass(frozen=True)
class Toolchain:
    """Commands.

    Args:
        clang (tuple): clang as it is, for text that includes no system header.
        system_clang (tuple): clang that finds the system's headers.
        link (tuple): makes a shared library of an object file.
        lint (tuple): clang that knows the targets for which text is only looked at.
    """

    clang: tuple[str, ...]
    system_clang: tuple[str, ...]
    link: tuple[str, ...]
    lint: tuple[str, ...]


@cache
def toolchain() -> Toolchain:
    """``$ALLMEM_CLANG``, a clang++ on the path, or the one in PyPI's ziglang.

    ``ALLMEM_CLANG=ziglang`` prefers the last.

    Raises:
        MetalError: if there is none that is new enough.
    """
    chosen = os.environ.get("ALLMEM_CLANG")
    if chosen and chosen != "ziglang":
        return _clang(chosen)
    if not chosen:
        for name in ("clang++", *(f"clang++-{n}" for n in range(22, 16, -1))):
            path = shutil.which(name)
            if path and _is_new_enough(path):
                return _clang(path)
    return _zig()


def _is_new_enough(clang: str) -> bool:
    text = subprocess.run([clang, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"(Apple )?clang version (\d+)", text)
    oldest = OLDEST_APPLE_CLANG if found and found[1] else OLDEST_CLANG
    return found is not None and int(found[2]) >= oldest


def _clang(path: str) -> Toolchain:
    if not shutil.which(path):
        raise MetalError(f"ALLMEM_CLANG is {path}, which is not a command")
    if not _is_new_enough(path):
        raise MetalError(f"{path} is older than clang {OLDEST_CLANG}")
    if sys.platform != "darwin":
        return Toolchain((path,), (path,), (path, "-shared"), (path,))
    # The runtime's symbols are found when a kernel is loaded. Apple's clang has the
    # targets of Apple's machines only.
    link = (path, "-shared", "-undefined", "dynamic_lookup")
    return Toolchain((path,), (path,), link, _zig().lint)


def _zig() -> Toolchain:
    spec = importlib.util.find_spec("ziglang")
    if not spec or not spec.origin:
        raise MetalError(
            "Metal kernels need clang++ 17 or newer to run on a CPU: pip install "
            "ziglang, or set ALLMEM_CLANG"
        )
    zig = str(Path(spec.origin).parent / "zig")
    clang = (zig, "clang")
    # `zig c++` brings libc's headers, but takes 0.6 s for what `zig clang` does in
    # 0.03, and the first time a minute to link, for which it builds a C++ library.
    return Toolchain(clang, (zig, "c++"), (zig, "ld.lld", "-shared"), clang)


def run(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a tool with ``text`` as its input."""
    env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig")}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=env)


def check(result: subprocess.CompletedProcess[str], what: str) -> str:
    """The tool's output.

    Raises:
        MetalError: with its first messages, if it failed.
    """
    if result.returncode:
        raise MetalError(f"{what} failed:\n{result.stderr[:4000]}")
    return result.stdout


@cache
def cache_folder() -> Path:
    """``$ALLMEM_METAL_CACHE``, or a folder of this user's among temporary files."""
    default = Path(tempfile.gettempdir(), f"allmem-metal-{os.getuid()}")
    folder = Path(os.environ.get("ALLMEM_METAL_CACHE", default)).absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def cached(name: str, parts: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The file that ``build`` writes, kept for as long as ``parts`` stay the same."""
    key = hashlib.sha256("\0".join([*parts, *toolchain().clang]).encode()).hexdigest()
    stem, suffix = os.path.splitext(name)
    path = cache_folder() / f"{stem}-{key[:20]}{suffix}"
    if not path.exists():
        # Two processes may build at once; either's result will do.
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            build(Path(folder, name))
            Path(folder, name).replace(path)
    return path
