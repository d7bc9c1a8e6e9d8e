"""Runs Metal kernels on a CPU, thread by thread, and finds their mistakes.

``with emulated() as launches:`` makes ``mx.fast.metal_kernel`` work without a Mac. MLX
writes the kernel's text, as it does on one; the text is rewritten as C++, compiled by
clang, and run with Metal's barriers, simdgroup functions and threadgroup memory.
``mode="check"`` also finds races, accesses out of bounds or between elements of an
array, reads of what was not written, integers that do not fit and divergence, and
counts the bytes that a kernel loads and stores. ``matrices_in_memory`` names the
variables that keep a compiler from holding the matrices of a simdgroup in registers.

What only a Mac can tell: whether Apple's compiler takes the text (``lint`` is stricter
than the compiler here, but not the same), how fast the kernel is, the last bits of exp
and of matrix products, and what weaker memory ordering does to a kernel that relies on
more than barriers. A kernel that never ends, never ends here.
"""

from .emulate import EmulatedKernel, Launch, emulated, source_of
from .errors import MetalError
from .ir import ir, matrices_in_memory
from .lint import lint

__all__ = [
    "EmulatedKernel",
    "Launch",
    "MetalError",
    "emulated",
    "ir",
    "lint",
    "matrices_in_memory",
    "source_of",
]
