"""Defects put into the kernels on purpose: the tests of the kernels find each.

The last column says which layer does: ``check`` (races, bounds, initialisation,
divergence), ``numbers`` (against the reference, nothing else being wrong), ``lint``
(address spaces), ``registers`` (matrices in memory), ``copies`` (inputs that a launch
of its own would copy) or ``build``.
"""

import inspect
from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import pytest
from kernel_cases import (
    EXTREMES,
    Case,
    Inputs,
    computed,
    copied,
    differences,
    emulated_kernels,
    reference,
    strided,
)
from metal_host import MetalError, lint, matrices_in_memory

from allmem_mlx.memory import kernels

# More than one document, head, threadgroup and tile, and a ragged end.
CASES = {
    "inputs": Case(2, 2, 32, 32, 70, mx.bfloat16),
    "read": Case(2, 2, 64, 128, 19),
    "fold": Case(2, 2, 64, 128, 37),
    "write": Case(2, 2, 32, 64, 1),
}
START = Case(2, 2, 64, 128, 37, is_open=False)
DOWN = Case(2, 2, 64, 128, 37, updates="down")
WIDE = Case(1, 2, 128, 128, 20)  # whose tiles are of 64 columns
TILES = Case(1, 1, 32, 32, 170)  # of 32 tokens
LONG = Case(1, 1, 32, 32, 2**16 + 70)


def barrier(flags: str, group: str = "threadgroup") -> str:
    return f"{group}_barrier(mem_flags::{flags});"


BARRIER = barrier("mem_threadgroup")
DEVICE = barrier("mem_device")
IN_HEADER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
UNROLL = "#pragma clang loop unroll(full)\n"


class Mutant(NamedTuple):
    """``old`` becomes ``new``, at its first occurrence, or at the one of number ``at``;
    in the kernel or, where it says so, in another file."""

    defect: str
    kernel: str
    old: str
    new: str
    found: str
    at: int = 0
    file: str = ""
    case: Case | None = None
    extreme: str = ""


def dropped(kernel: str, barrier: str, number: int, file: str = "") -> list[Mutant]:
    """Each barrier in turn."""
    return [
        Mutant(
            f"{file} barrier {i} dropped".strip(), kernel, barrier, "", "check", i, file
        )
        for i in range(number)
    ]


MUTANTS = [
    # Barriers.
    *dropped("read", BARRIER, 3),
    *dropped("fold", IN_HEADER, 2, "memory.h"),
    *dropped("fold", DEVICE, 1),
    Mutant(
        "barrier that orders no memory", "read", BARRIER, barrier("mem_none"), "check"
    ),
    Mutant("barrier that orders other memory", "read", BARRIER, DEVICE, "check", at=1),
    Mutant("barrier without device memory", "fold", DEVICE, BARRIER, "check"),
    Mutant(
        "barrier of a simdgroup only",
        "read",
        BARRIER,
        barrier("mem_threadgroup", "simdgroup"),
        "check",
    ),
    Mutant("in a branch", "read", BARRIER, f"if (simd < 4) {BARRIER}", "check"),
    # Bounds.
    Mutant("one token too many", "inputs", "min(T,", "min(T + 1,", "check"),
    Mutant("one token of the tail too few", "inputs", "t < 0 ?", "t < -1 ?", "check"),
    Mutant("every segment writes the tail", "inputs", "end == T", "end > 0", "check"),
    Mutant(
        "one query too many",
        "read",
        "t < valid ?",
        "t <= valid ?",
        "check",
        file="memory.h",
    ),
    Mutant("every tile is full", "read", "min(TOKENS, T - start)", "TOKENS", "check"),
    Mutant("one result too many", "read", "t < tokens; t", "t <= tokens; t", "check"),
    Mutant("units too few", "read", "unit < H;", "unit < H - 8;", "check"),
    Mutant("a sum too short", "read", "i < H;", "i < H - 8;", "numbers"),
    Mutant("rows too few", "read", "row < P;", "row < P - 8;", "numbers"),
    Mutant("norm too short", "read", "i < P; i += T", "i < P - 1; i += T", "check"),
    Mutant(
        "one row too many",
        "fold",
        "t < valid ?",
        "t <= valid ?",
        "check",
        file="memory.h",
    ),
    Mutant("one decay too many", "fold", "t < valid; t", "t <= valid; t", "check"),
    Mutant(
        "one row too many", "write", "H / columns; i", "H / columns + 1; i", "check"
    ),
    Mutant("one element too many", "write", "at < (row", "at <= (row", "check"),
    Mutant("one part too many", "write", "i < PARTS", "i <= PARTS", "check"),
    Mutant("one part too few", "write", "i < PARTS", "i < PARTS - 1", "numbers"),
    # Memory to which nothing was written, or that two write.
    Mutant(
        "rest of a tile not filled",
        "read",
        "tile[t * LD + c] = t",
        "if (t < valid) tile[t * LD + c] = t",
        "check",
        file="memory.h",
    ),
    Mutant("gate not written", "inputs", "lane < 5", "lane < 4", "check"),
    Mutant("sums in one place", "fold", "+ unit / 8;", "+ 0;", "check"),
    Mutant("a sum not written", "fold", "own[H / 8] =", "own[0] =", "check"),
    Mutant(
        "every threadgroup writes the decay",
        "fold",
        "threadgroup_position_in_grid.x == 0 && thread_index == 0",
        "thread_index == 0",
        "check",
    ),
    Mutant(
        "all lanes write a scale",
        "write",
        "if (lane == 0) {\n    scales_out",
        "if (lane < 32) {\n    scales_out",
        "check",
    ),
    # Wrong operand, stride, sign or place.
    Mutant("up is gate", "read", "up_rows + unit", "gate_rows + unit", "numbers"),
    Mutant("no residual", "read", "[e] += sums", "[e] = sums", "numbers"),
    Mutant("wrong stride", "read", "row * H + i, H)", "row * H + i, P)", "numbers"),
    Mutant("not transposed", "read", "LD, ulong2(0, 0), true", "LD", "numbers"),
    Mutant("gates of the first tile", "read", "(start + t) * g", "t * g", "numbers"),
    Mutant("rates exchanged", "fold", "rate[1] * d", "rate[0] * d", "numbers"),
    Mutant("wrong sign", "fold", "-rate[2]", "rate[2]", "numbers"),
    Mutant("not transposed", "fold", "LD, ulong2(0, 0), true", "LD", "numbers"),
    Mutant("not normalised", "fold", "e] *= down", "e] += 0 * down", "numbers"),
    Mutant(
        "first tile of down lost",
        "fold",
        "start == 0 ? g_down",
        "true ? g_down",
        "numbers",
    ),
    Mutant(
        "first tile of gate lost",
        "fold",
        "start == 0 ? g_gate",
        "true ? g_gate",
        "numbers",
    ),
    Mutant(
        "columns not replaced",
        "fold",
        "first < P - COL",
        "first < 0 * COL",
        "numbers",
        case=WIDE,
    ),
    Mutant(
        "first columns twice",
        "fold",
        "values + first",
        "values + 0",
        "numbers",
        case=WIDE,
    ),
    Mutant(
        "squares of every tile",
        "fold",
        "gate_squared = up_squared = down_squared = 0;",
        "if (start == 0) gate_squared = up_squared = down_squared = 0;",
        "numbers",
    ),
    Mutant(
        "squares of one lane",
        "fold",
        "simd_sum(gate_squared)",
        "gate_squared",
        "numbers",
    ),
    Mutant(
        "squares of up are gate's", "fold", "squared(up_s", "squared(gate_s", "numbers"
    ),
    Mutant("no G is added to", "fold", "OPEN || start", "start", "numbers"),
    Mutant(
        "what stands for G is added to",
        "fold",
        "OPEN || start > 0",
        "true",
        "numbers",
        case=START,
    ),
    Mutant(
        "what stands for the decay is added to",
        "fold",
        "OPEN && counts",
        "counts",
        "numbers",
        case=START,
    ),
    Mutant(
        "G of the first tile lost", "fold", "|| start > 0", "", "numbers", case=START
    ),
    Mutant("norms of the first head", "write", "head * rows", "0 * rows", "numbers"),
    Mutant("squares of gate", "write", "index + number", "index", "numbers"),
    Mutant("sum for mean", "write", " / limits[1]", "", "numbers"),
    Mutant("not normalised", "write", "scale * w[at]", "w[at]", "numbers"),
    Mutant("not clipped", "write", "clip * g", "g", "numbers"),
    Mutant("taps in reverse", "inputs", "* TAPS + j]", "* TAPS + 3 - j]", "numbers"),
    Mutant("one norm for both", "inputs", "k_norm[lane", "q_norm[lane", "numbers"),
    # Where down alone is written.
    Mutant(
        "W0 of each document",
        "read",
        "ALL ? index : head",
        "index",
        "check",
        case=DOWN,
    ),
    Mutant(
        "W0 of each document",
        "fold",
        "ALL ? index : index % heads",
        "index",
        "check",
        case=DOWN,
    ),
    Mutant("keys for values", "fold", "!ALL || first", "first", "check", case=DOWN),
    Mutant(
        "gate is written too", "fold", "ALL && first", "first", "check", 1, case=DOWN
    ),
    Mutant("three sums", "fold", "WRITTEN * index", "3 * index", "check", case=DOWN),
    Mutant("three sums", "write", "WRITTEN * index", "3 * index", "check", case=DOWN),
    Mutant(
        "down is gate", "write", "number + 3 - WRITTEN", "number", "check", case=DOWN
    ),
    # Strides: every argument here is a part of a larger one.
    Mutant("queries in a row", "read", "    queries_strides[2],", "    P,", "check"),
    Mutant(
        "queries side by side", "read", "    queries_strides[3],", "    1,", "check"
    ),
    Mutant("gates in a row", "read", "gates_strides[2]", "1", "check"),
    Mutant("heads in a row", "read", "* queries_strides[1]", "* T * P", "check"),
    Mutant("rows in a row", "fold", "= rows_strides[2]", "= 2 * P + 4", "check"),
    Mutant("rows side by side", "fold", "= rows_strides[3]", "= 1", "check"),
    Mutant(
        "documents in a row",
        "fold",
        "* rows_strides[0]",
        "* heads * T * (2 * P + 4)",
        "check",
    ),
    # Precision and range.
    Mutant("sum in half", "inputs", "float x = 0;", "InT x = 0;", "numbers"),
    Mutant("rate in half", "inputs", "const float x", "const InT x", "numbers"),
    Mutant(
        "hidden in half",
        "read",
        "const float x = gate",
        "const half x = gate",
        "numbers",
    ),
    Mutant(
        "weight in half", "write", "const float weight", "const half weight", "numbers"
    ),
    Mutant(
        "token in 16 bits",
        "inputs",
        "const int token",
        "const ushort token",
        "numbers",
        case=LONG,
    ),
    Mutant(
        "token in 16 bits",
        "read",
        "const int start",
        "const ushort start",
        "numbers",
        case=LONG,
    ),
    Mutant(
        "token in 16 bits",
        "fold",
        "+ start * stride",
        "+ ushort(start) * stride",
        "numbers",
        case=LONG,
    ),
    # Numbers that are rare.
    Mutant(
        "no epsilon in a norm",
        "inputs",
        " + allmem::RMS_EPS",
        "",
        "numbers",
        extreme="zero",
    ),
    Mutant(
        "softplus that overflows",
        "inputs",
        "metal::max(x, 0.0f) + log1p(metal::precise::exp(-metal::abs(x)))",
        "log1p(metal::precise::exp(x))",
        "numbers",
        file="memory.h",
        extreme="high rates",
    ),
    Mutant(
        "sigmoid that overflows",
        "inputs",
        "1.0f / (1.0f + metal::precise::exp(-x))",
        "metal::precise::exp(x) / (1.0f + metal::precise::exp(x))",
        "numbers",
        file="memory.h",
        extreme="high rates",
    ),
    Mutant(
        "no epsilon in a norm",
        "read",
        " / P + epsilon",
        " / P",
        "numbers",
        extreme="zero",
    ),
    Mutant(
        "no epsilon of a row",
        "write",
        " + allmem::L2_EPS",
        "",
        "numbers",
        extreme="empty",
    ),
    # Around the kernels.
    Mutant(
        "tokens left over",
        "read",
        "-(-T // tokens)",
        "T // tokens",
        "check",
        file="kernels.py",
    ),
    Mutant(
        "one document",
        "fold",
        "grid=(4 * h, B * n, 1)",
        "grid=(4 * h, n, 1)",
        "check",
        file="kernels.py",
    ),
    Mutant(
        "gate and up only",
        "write",
        "grid=(32 * p, written * n",
        "grid=(32 * p, 2 * n",
        "check",
        file="kernels.py",
    ),
    Mutant(
        "weights as they come",
        "read",
        "*map(mx.contiguous, weights)",
        "*weights",
        "check",
        file="kernels.py",
    ),
    Mutant(
        "state as it comes",
        "fold",
        "*map(mx.contiguous, inputs.values())",
        "*inputs.values()",
        "check",
        file="kernels.py",
    ),
    Mutant(
        "inputs as they come",
        "inputs",
        '("queries", "rows", "gates", "new_conv_state"),',
        '("queries", "rows", "gates", "new_conv_state"), True,',
        "check",
        file="kernels.py",
    ),
    Mutant(
        "copies of a chunk",
        "read",
        "strided=True",
        "strided=False",
        "copies",
        file="kernels.py",
    ),
    Mutant(
        "copies of a chunk",
        "fold",
        "strided=True",
        "strided=False",
        "copies",
        at=1,
        file="kernels.py",
    ),
    # Matrices that would lie in memory.
    Mutant("a loop not unrolled", "read", UNROLL, "", "registers", at=1, case=TILES),
    Mutant("a loop not unrolled", "fold", UNROLL, "", "registers", at=4),
    Mutant(
        "an index not constant",
        "fold",
        "gate[j] = make",
        "gate[(j + T) % TILES] = make",
        "registers",
    ),
    # What only Metal's compiler tells apart.
    Mutant(
        "a small input taken for device memory",
        "read",
        "gate = gates\n",
        "const device float* small = gates;\n    gate = small\n",
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
        "tile of device memory",
        "read",
        "threadgroup float* tile",
        "device float* tile",
        "lint",
        file="memory.h",
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


def module(text: str) -> ModuleType:
    """Another kernels.py."""
    made = ModuleType("allmem_mlx.memory.mutant")
    made.__package__ = "allmem_mlx.memory"
    exec(compile(text, "mutant", "exec"), made.__dict__)
    return made


def layer_that_finds(
    kernel: str, case: Case, extreme: str = "", within: ModuleType = kernels
) -> str:
    name = f"memory_{kernel}"
    arguments = Inputs(case).of(name)
    if extreme:
        arguments = EXTREMES[name][extreme](arguments)
    mode = "fast" if case is LONG else "check"
    try:
        with emulated_kernels(mode=mode) as ran:
            actual = computed(name, strided(arguments), within)
    except MetalError as error:
        return "build" if "compil" in str(error) else "check"
    if ran[0].diagnostics:
        return "check"
    if lint(ran[0].source):
        return "lint"
    if matrices_in_memory(ran[0].source, unroll=False):
        return "registers"
    if differences(name, actual, reference(name, arguments)):
        return "numbers"
    return "copies" if copied(name, arguments, within) else "nothing"


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: f"{mutant.kernel}: {mutant.defect}"
)
@pytest.mark.slow
def test_a_defect_is_found(mutant, monkeypatch):
    file, text = mutant.file or f"memory_{mutant.kernel}.metal", kernels._text
    within = kernels
    if file == "kernels.py":
        within = module(mutated(inspect.getsource(kernels), mutant))
    monkeypatch.setattr(
        kernels, "_text", lambda x: mutated(text(x), mutant) if x == file else text(x)
    )
    if mutant.found != "registers":  # which a short loop does not need to be
        monkeypatch.setattr(kernels, "FOLD_TOKENS", 16)  # less to compile
    case = mutant.case or CASES[mutant.kernel]
    found = layer_that_finds(mutant.kernel, case, mutant.extreme, within)
    assert found == mutant.found


@pytest.mark.parametrize("kernel", CASES)
def test_without_a_defect_nothing_is_found(kernel):
    assert layer_that_finds(kernel, CASES[kernel]) == "nothing"
