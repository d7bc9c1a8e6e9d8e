"""What clang makes of a kernel, and which matrices it could not keep in registers."""

import re

from .library import COMPILE, cpp
from .toolchain import HERE, check, run, toolchain

# One CPU for all machines, as what is worth unrolling depends on it; no vectors but the
# kernel's own.
TARGET = ["--target=x86_64-unknown-linux-gnu", "-march=x86-64-v3"]
OPTIMISE = ["-O2", "-fno-vectorize", "-fno-slp-vectorize"]
OUTPUT = ["-fno-discard-value-names", "-g0", "-S", "-emit-llvm"]
STRUCT = re.compile(r"^(%\S+|%\"[^\"]+\") = type (.*)$", re.M)
ALLOCA = re.compile(r"^ +%(\"[^\"]+\"|\S+) = alloca (.*?)(?:, align \d+)?$", re.M)


def ir(source: str, unroll: bool = True) -> str:
    """The LLVM IR of a text that MLX has written, optimised by -O2.

    Functions of matrices are unknown to clang here, and take and return the elements of
    a lane, a vector of two, by value.

    Args:
        source (str): the text.
        unroll (bool): whether clang may unroll loops of which the text does not say so.
    """
    command = [*toolchain().lint, *COMPILE, *TARGET, *OPTIMISE, *OUTPUT]
    command += ["-DOPAQUE_MATRICES", *([] if unroll else ["-fno-unroll-loops"])]
    command += ["-include", str(HERE / "stdlib" / "metal.h"), "-", "-o", "-"]
    return check(run(command, cpp(source)), "compiling to IR")


def matrices_in_memory(source: str, unroll: bool = True) -> list[str]:
    """Private variables that contain a simdgroup matrix and are left in memory.

    A variable is, if its address is needed: where a function gets it that was not
    inlined, or an index is not a constant once loops are unrolled. A GPU then keeps it
    in device memory, as registers have no addresses.

    Args:
        source (str): a text that MLX has written.
        unroll (bool): as :func:`ir` has it.

    Returns:
        list: the variables' names, as clang has them.
    """
    text = ir(source, unroll)
    structs = dict(STRUCT.findall(text))
    matrices = {name for name in structs if "simdgroup_matrix" in name}
    while found := {
        name
        for name, body in structs.items()
        if name not in matrices and any(matrix in body for matrix in matrices)
    }:
        matrices |= found
    return [
        name.strip('"')
        for name, type_ in ALLOCA.findall(text)
        if any(matrix in type_ for matrix in matrices)
    ]
