"""The types of a kernel's text, with Metal's address spaces."""

import re

from .library import preprocess
from .rewrite import rewrite
from .toolchain import HERE, run, toolchain

# clang's C++ for OpenCL, for a target that has half and bfloat and on which a pointer
# without an address space does not point to any of them.
CLANG = [
    *["-x", "cl", "-cl-std=clc++2021", "--target=amdgcn-amd-amdhsa", "-nogpulib"],
    *["-cl-no-stdinc", "-fsyntax-only", "-w"],
    *["-Xclang", "-cl-ext=-all,+cl_khr_fp16"],
]
SPACES = {
    "device": "__global",
    "threadgroup": "__local",
    "constant": "__constant",
    "thread": "",
}
# Words of OpenCL or C++ that Metal does not have.
FOREIGN = re.compile(r"\b(double|new|goto|throw|virtual|dynamic_cast)\b")


def lint(source: str) -> str:
    """Checks the types of a text that MLX has written.

    Pointers and references to different address spaces, which the compiled kernel does
    not tell apart, are different types here, as they are to Apple's compiler.

    Returns:
        str: clang's errors; empty if there are none.
    """
    text = preprocess('#line 1 "kernel"\n' + source)
    if found := FOREIGN.search(text):
        return f"error: Metal has no '{found[1]}'"
    text = rewrite(text, SPACES, _variable)
    command = [*toolchain().lint, *CLANG, "-include", str(HERE / "lint.h"), "-"]
    result = run(command, text)
    return result.stderr if result.returncode else ""


def _variable(type_: str, name: str, dimensions: str, index: int) -> str:
    return (
        f"typedef {type_} host_{name}{dimensions}; "
        f"__local host_{name}& {name} = *host_threadgroup<host_{name}>();"
    )
