"""Defects put into the kernels on purpose: the tests of the kernels find each.

The last column says which layer does: ``check`` (races, bounds, initialisation,
divergence), ``numbers`` (against the reference, nothing else being wrong), ``lint``
(address spaces) or ``build``.
"""

from typing import NamedTuple

import mlx.core as mx
import pytest
from helpers import relative_error
from kernel_cases import TOLERANCE, Case, Inputs, arrays, emulated_kernels
from metal_host import MetalError, lint

from allmem_mlx import kernels, memory_ops

# More than one document, head, threadgroup and tile, and a ragged end.
CASES = {
    "inputs": Case(2, 2, 32, 32, 70, mx.bfloat16),
    "read": Case(2, 2, 64, 128, 19),
    "fold": Case(2, 2, 64, 256, 69),
    "write": Case(2, 2, 32, 64, 1),
}


def barrier(flags: str, group: str = "threadgroup") -> str:
    return f"{group}_barrier(mem_flags::{flags});"


BARRIER = barrier("mem_threadgroup")
DEVICE_TOO = barrier("mem_threadgroup | mem_flags::mem_device")


class Mutant(NamedTuple):
    """``old`` becomes ``new``, at its first occurrence, or at the one of number ``at``;
    in the kernel or, where it says so, in the common header."""

    defect: str
    kernel: str
    old: str
    new: str
    found: str
    at: int = 0
    file: str = ""
    case: Case | None = None


def dropped(kernel: str, barrier: str, number: int) -> list[Mutant]:
    """Each barrier in turn."""
    return [
        Mutant(f"barrier {i} dropped", kernel, barrier, "", "check", i)
        for i in range(number)
    ]


MUTANTS = [
    # Barriers.
    *dropped("read", BARRIER, 4),
    *dropped("fold", BARRIER, 5),
    *dropped("fold", DEVICE_TOO, 1),
    *dropped("write", BARRIER, 1),
    Mutant(
        "barrier that orders no memory", "read", BARRIER, barrier("mem_none"), "check"
    ),
    Mutant(
        "barrier that orders other memory",
        "read",
        BARRIER,
        barrier("mem_device"),
        "check",
        at=1,
    ),
    Mutant(
        "barrier of a simdgroup only",
        "fold",
        BARRIER,
        barrier("mem_threadgroup", "simdgroup"),
        "check",
    ),
    Mutant("in a branch", "write", BARRIER, f"if (simd < 8) {BARRIER}", "check"),
    # Bounds.
    Mutant("one token too many", "inputs", "min(T,", "min(T + 1,", "check"),
    Mutant("one token of the tail too few", "inputs", "t < 0 ?", "t < -1 ?", "check"),
    Mutant("every segment writes the tail", "inputs", "end == T", "end > 0", "check"),
    Mutant("one query too many", "read", "t < tokens ?", "t <= tokens ?", "check"),
    Mutant("one result too many", "read", "t < tokens; t", "t <= tokens; t", "check"),
    Mutant("one unit too few", "read", "NS / 8; i", "NS / 8 - 1; i", "numbers"),
    Mutant(
        "one row too many",
        "fold",
        "t < valid ?",
        "t <= valid ?",
        "check",
        file="memory.h",
    ),
    Mutant("one decay too many", "fold", "t < valid; t", "t <= valid; t", "check"),
    Mutant("one row too many", "write", "PIECES; i +=", "PIECES + 1; i +=", "check"),
    # Memory to which nothing was written, or that two write.
    Mutant(
        "rest of a tile not filled",
        "read",
        "values[c * LD + t] =\n",
        "if (t < tokens)\n      values[c * LD + t] =\n",
        "check",
        case=Case(1, 1, 64, 128, 3),
    ),
    Mutant("half of a norm missing", "write", "[simd] =", "[simd / 2] =", "check"),
    Mutant("gate not written", "inputs", "lane < 5", "lane < 4", "check"),
    Mutant(
        "all lanes write a sum",
        "write",
        "if (lane == 0) {\n  partial",
        "if (lane < 32) {\n  partial",
        "check",
    ),
    Mutant(
        "every threadgroup writes the decay",
        "fold",
        "threadgroup_position_in_grid.x == 0 && thread_index == 0",
        "thread_index == 0",
        "check",
    ),
    # Wrong operand, stride, sign or place.
    Mutant("up is gate", "read", "up_rows + unit", "gate_rows + unit", "numbers"),
    Mutant("no residual", "read", "[e] += sums", "[e] = sums", "numbers"),
    Mutant("wrong stride", "read", "+ 8 * i, H);", "+ 8 * i, P);", "numbers"),
    Mutant("rates exchanged", "fold", "rate[1] * d", "rate[0] * d", "numbers"),
    Mutant("wrong sign", "fold", "-rate[2]", "rate[2]", "numbers"),
    Mutant("not transposed", "fold", "LD, ulong2(0, 0), true", "LD", "numbers"),
    Mutant("not normalised", "fold", "e] *= down", "e] += 0 * down", "numbers"),
    Mutant(
        "first tile lost", "fold", "start == 0 ? g_down", "true ? g_down", "numbers"
    ),
    Mutant("G not cleared", "write", "g_out[at] = 0", "g_out[at] = grad", "numbers"),
    Mutant("norms of the first head", "write", "head * rows", "0 * rows", "numbers"),
    Mutant("taps in reverse", "inputs", "* TAPS + j]", "* TAPS + 3 - j]", "numbers"),
    # Precision.
    Mutant("sum in half", "inputs", "float x = 0;", "InT x = 0;", "numbers"),
    Mutant("rate in half", "inputs", "const float x", "const InT x", "numbers"),
    # What only Metal's compiler tells apart.
    Mutant(
        "a small input taken for device memory",
        "read",
        "gate = gates[",
        "const device float* small = gates;\n      gate = small[",
        "lint",
        case=Case(1, 1, 32, 32, 1),
    ),
    Mutant(
        "pointer to nowhere",
        "write",
        "const device float* norms",
        "const float* norms",
        "lint",
    ),
    Mutant(
        "half or float",
        "inputs",
        "max(x, 0.0f)",
        "max(half(x), 0.0f)",
        "build",
        file="memory.h",
    ),
]


def mutated(text: str, mutant: Mutant) -> str:
    parts = text.split(mutant.old)
    assert len(parts) > mutant.at + 1, f"{mutant.old!r} is not there"
    before = mutant.old.join(parts[: mutant.at + 1])
    return before + mutant.new + mutant.old.join(parts[mutant.at + 1 :])


def layer_that_finds(kernel: str, case: Case) -> str:
    name = f"memory_{kernel}"
    arguments = Inputs(case).of(name)
    expected = arrays(getattr(memory_ops, name)(**arguments))
    try:
        with emulated_kernels(mode="check") as ran:
            actual = arrays(getattr(kernels, name)(**arguments))
    except MetalError as error:
        return "build" if "compil" in str(error) else "check"
    if ran[0].diagnostics:
        return "check"
    if lint(ran[0].source):
        return "lint"
    for a, e in zip(actual, expected, strict=True):
        error = relative_error(a.astype(mx.float32), e.astype(mx.float32))
        if not error <= TOLERANCE[e.dtype]:
            return "numbers"
    return "nothing"


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: f"{mutant.kernel}: {mutant.defect}"
)
def test_a_defect_is_found(mutant, monkeypatch):
    file, text = mutant.file or f"memory_{mutant.kernel}.metal", kernels._text
    monkeypatch.setattr(
        kernels, "_text", lambda x: mutated(text(x), mutant) if x == file else text(x)
    )
    case = mutant.case or CASES[mutant.kernel]
    assert layer_that_finds(mutant.kernel, case) == mutant.found


@pytest.mark.parametrize("kernel", CASES)
def test_without_a_defect_nothing_is_found(kernel):
    assert layer_that_finds(kernel, CASES[kernel]) == "nothing"
