"""The harness that runs Metal kernels on a CPU: what it computes, finds and counts."""

import contextlib
import ctypes
import importlib
import signal
from collections.abc import Iterator

import mlx.core as mx
import mlx_lm.models.gated_delta
import mlx_lm.models.ssm
import numpy as np
import pytest
from helpers import assert_close
from metal_host import (
    MetalError,
    emulated,
    ir,
    lint,
    matrices_in_memory,
    source_of,
    toolchain,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16

# The delta rule: for each token e = eta (W k - v), W -= e k^T, o = W q, with W [64, 64]
# in threadgroup memory. One threadgroup of 256 threads for each head.
STEP = """
constexpr int D = 64;
threadgroup float W[D][D];
threadgroup float kk[D], qq[D];
const uint head = threadgroup_position_in_grid.x;
const uint tid = thread_position_in_threadgroup.x;
const uint simd = simdgroup_index_in_threadgroup;
const uint lane = thread_index_in_simdgroup;
for (int i = tid; i < D * D; i += 256) W[i / D][i % D] = w[head * D * D + i];
for (int t = 0; t < T; t++) {
  const int b = (head * T + t) * D;
  if (tid < D) { kk[tid] = k[b + tid]; qq[tid] = q[b + tid]; }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int r = simd; r < D; r += 8) {
    float p = W[r][lane] * kk[lane] + W[r][lane + 32] * kk[lane + 32];
    float e = (simd_sum(p) - v[b + r]) * eta[head * T + t];
    W[r][lane] -= e * kk[lane];
    W[r][lane + 32] -= e * kk[lane + 32];
    float y = simd_sum(W[r][lane] * qq[lane] + W[r][lane + 32] * qq[lane + 32]);
    if (lane == 0) o[b + r] = y;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup); // before the next token
}
for (int i = tid; i < D * D; i += 256) w_out[head * D * D + i] = W[i / D][i % D];
"""
HEADS, TOKENS, D = 3, 5, 64


def step_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, HEADS, TOKENS, D), np.float32) * D**-0.5
    eta = rng.random((HEADS, TOKENS), np.float32)
    w = rng.standard_normal((HEADS, D, D), np.float32) * 0.1
    return {"q": q, "k": k, "v": v, "eta": eta, "w": w}


def step(source: str = STEP, header: str = "") -> list[mx.array]:
    inputs = step_inputs()
    kernel = mx.fast.metal_kernel(
        name="step",
        input_names=[*inputs, "T"],
        output_names=["o", "w_out"],
        source=source,
        header=header,
    )
    return kernel(
        inputs=[*map(mx.array, inputs.values()), TOKENS],
        grid=(256 * HEADS, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[inputs["v"].shape, inputs["w"].shape],
        output_dtypes=[F32, F32],
    )


def step_reference() -> tuple[np.ndarray, np.ndarray]:
    x = {name: a.astype(np.float64) for name, a in step_inputs().items()}
    w, o = x["w"], np.zeros_like(x["v"])
    for h, t in np.ndindex(HEADS, TOKENS):
        e = x["eta"][h, t] * (w[h] @ x["k"][h, t] - x["v"][h, t])
        w[h] -= np.outer(e, x["k"][h, t])
        o[h, t] = w[h] @ x["q"][h, t]
    return o, w


def is_right(outputs: list[mx.array]) -> bool:
    return all(map(lambda x, y: np.allclose(x, y, 0, 1e-5), outputs, step_reference()))


def edit(*changes: tuple[str, str], source: str = STEP) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


BARRIER = "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
SECOND_BARRIER = (
    "  threadgroup_barrier(mem_flags::mem_threadgroup); // before the next token"
)
STORE = "if (lane == 0) o[b + r] = y;"
TOKEN = "const int b = "
LOOP = "for (int r = simd; r < D; r += 8)"
LOAD_W = "for (int i = tid; i < D * D; i += 256) W"

# What is wrong with each: how the plain run ends, and what the checked one says.
MUTANTS = {
    "no barrier": ("wrong", "race", (BARRIER, "\n")),
    "no second barrier": ("wrong", "race", (SECOND_BARRIER, "")),
    "mem_none": ("right", "race", (BARRIER, BARRIER.replace("threadgroup)", "none)"))),
    "mem_device": (
        "right",
        "race",
        (BARRIER, BARRIER.replace("mem_threadgroup", "mem_device")),
    ),
    "simdgroup barrier": (
        "wrong",
        "race",
        (BARRIER, BARRIER.replace("threadgroup_b", "simdgroup_b")),
    ),
    "divergent barrier": (
        "raises",
        "divergence",
        (BARRIER, "if (tid < 200)" + BARRIER),
    ),
    "early return": (
        "raises",
        "divergence",
        ("for (int t", "if (tid == 255) return; for (int t"),
    ),
    "threadgroup write out of bounds": (
        "raises",
        "out of bounds",
        ("if (tid < D)", "if (tid <= D)"),
    ),
    "threadgroup read out of bounds": (
        "raises",
        "out of bounds",
        ("W[r][lane + 32] * kk[lane + 32];", "W[r][lane + 32] * kk[lane + 33];"),
    ),
    "device read out of bounds": (
        "raises",
        "out of bounds",
        ("v[b + r]", "v[b + r + 1]"),
    ),
    "device write out of bounds": (
        "raises",
        "out of bounds",
        ("o[b + r] = y", "o[b + r + 1] = y"),
    ),
    "write to input": (
        "raises",
        "write to input",
        (STORE, "if (lane == 0) { o[b + r] = y; ((device float*)v)[b + r] = y; }"),
    ),
    "rows left out": ("wrong", "unwritten", (LOOP, LOOP.replace("D;", "D - 1;"))),
    "all lanes write one value": ("right", "note", (STORE, "o[b + r] = y;")),
    "all lanes write": ("right", "race", (STORE, "o[b + r] = y + lane * 1e-7f;")),
    "two heads write one output": (
        "wrong",
        "race.*threadgroups",
        (TOKEN + "(head * T", TOKEN + "((head & 2) * T"),
    ),
    "uninitialised column": (
        "wrong",
        "uninitialised",
        (LOAD_W, LOAD_W.replace("D * D;", "D * D - 64;")),
    ),
    "divergent simd_sum": (
        "raises",
        "divergence",
        ("float y = simd_sum", "float y = 0; if (lane < 31) y = simd_sum"),
    ),
    "too much threadgroup memory": (
        "raises",
        "threadgroup memory",
        (
            LOAD_W,
            "threadgroup float more[4200]; more[tid] = 0;" + LOAD_W,
        ),
    ),
    "private array out of bounds": (
        "right",
        "array.s bounds",
        (
            "float p = ",
            "float z[4]; for (int i = 0; i < 4 + (T > 3); i++) z[i] = i;"
            "float p = z[T & 1] * 0 + ",
        ),
    ),
    "overflow": (
        "right",
        "overflow",
        (TOKEN, "int big = 2147483647; big += T; " + TOKEN + "(big & 0) + "),
    ),
    "shift": ("right", "shift", (TOKEN, TOKEN + "((1 << (T + 40)) & 0) + ")),
    "float to int": (
        "right",
        "integer's range",
        (TOKEN, TOKEN + "(int(1e20f * (T + 1)) & 0) + "),
    ),
    "misaligned": (
        "right",
        "misaligned",
        (
            STORE,
            STORE + "float4 z = *(const device float4*)(k + head + 1);"
            "if (z.x == 123) o[b] = 0;",
        ),
    ),
    "wrong operand": ("wrong", None, ("qq[tid] = q[b", "qq[tid] = k[b")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_finds_mutants(name):
    plain, message, *changes = MUTANTS[name]
    source = edit(*changes)
    with emulated():
        if plain == "raises":
            with pytest.raises(MetalError, match=message):
                step(source)
        else:
            assert is_right(step(source)) == (plain == "right")
    with emulated("check") as launches:
        if message is None or message == "note":
            step(source)
            assert bool(launches[0].diagnostics) == (message == "note")
        else:
            with pytest.raises(MetalError, match=message):
                step(source)


# C = A B in 16x16 tiles, a simdgroup for each quarter; A [M, K] and B [K, N].
MATMUL = """
threadgroup T a_tile[16 * 16], b_tile[16 * 16];
const int M = a_shape[0], K = a_shape[1], N = b_shape[1];
const int tid = thread_index_in_threadgroup;
const int simd = simdgroup_index_in_threadgroup;
const int row = threadgroup_position_in_grid.y * 16;
const int column = threadgroup_position_in_grid.x * 16;
simdgroup_matrix<float, 8, 8> sum(0);
for (int k = 0; k < K; k += 16) {
  stage<T>(a_tile, a, row, k, M, K, tid);
  stage<T>(b_tile, b, k, column, K, N, tid);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < 16; i += 8) {
    simdgroup_matrix<T, 8, 8> x, y;
    simdgroup_load(x, a_tile + simd / 2 * 8 * 16 + i, 16);
    simdgroup_load(y, b_tile, 16, ulong2(simd % 2 * 8, i));
    simdgroup_multiply_accumulate(sum, x, y, sum);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup); // before the next tiles
}
const int lane = thread_index_in_simdgroup;
const int r = row + simd / 2 * 8 + lane / 16 * 4 + lane / 2 % 4;
const int c = column + simd % 2 * 8 + lane / 8 % 2 * 4 + lane % 2 * 2;
for (int i = 0; i < 2; i++) {
  if (r < M && c + i < N) out[r * N + c + i] = T(sum.thread_elements()[i]);
}
"""
STAGE = """
#include <metal_simdgroup_matrix>
template <typename T>
inline void stage(
    threadgroup T* tile, const device T* x, int row, int column, int rows, int columns,
    int tid) {
  for (int i = tid; i < 256; i += 128) {
    const int r = row + i / 16, c = column + i % 16;
    tile[i] = r < rows && c < columns ? x[r * columns + c] : T(0);
  }
}
"""
MATMUL_MUTANTS = {
    "no barrier": (
        "race.*_tile",
        ("tid);\n  threadgroup_barrier(mem_flags::mem_threadgroup);", "tid);"),
    ),
    "no second barrier": (
        "race.*_tile",
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // before", "// before"),
    ),
    "origin and offset": ("out of bounds.*b_tile", ("b_tile, 16", "b_tile + 9, 16")),
    "half of the simdgroup": (
        "partial simdgroup",
        (
            "simdgroup_multiply",
            "if (thread_index_in_simdgroup < 16) simdgroup_multiply",
        ),
    ),
    "rows left out": ("unwritten", ("r < M &&", "r < M - 1 &&")),
}


def matmul(dtype=F32, source: str = MATMUL, M=19, K=37, N=21):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    a, b = mx.array(a).astype(dtype), mx.array(b).astype(dtype)
    kernel = mx.fast.metal_kernel(
        name="matmul",
        input_names=["a", "b"],
        output_names=["out"],
        source=source,
        header=STAGE,
    )
    out = kernel(
        inputs=[a, b],
        template=[("T", dtype)],
        grid=(-(-N // 16) * 128, -(-M // 16), 1),
        threadgroup=(128, 1, 1),
        output_shapes=[(M, N)],
        output_dtypes=[dtype],
    )[0]
    return out, a.astype(F32) @ b.astype(F32)


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("dtype, tolerance", [(F32, 1e-6), (F16, 1e-3), (BF16, 6e-3)])
def test_simdgroup_matrices(dtype, tolerance, mode):
    with emulated(mode) as launches:
        out, expected = matmul(dtype)
    assert_close("product", out.astype(F32), expected, tolerance)
    assert launches[0].threadgroups == 4
    assert launches[0].barriers == 4 * 2 * 3
    assert launches[0].threadgroup_bytes == 2 * 256 * dtype.size
    assert launches[0].diagnostics == []


@pytest.mark.parametrize("name", MATMUL_MUTANTS)
def test_finds_mutants_of_matrices(name):
    message, *changes = MATMUL_MUTANTS[name]
    with emulated("check"), pytest.raises(MetalError, match=message):
        matmul(source=edit(*changes, source=MATMUL))


@pytest.mark.parametrize(
    "kernel", [step, lambda: [matmul()[0]]], ids=["step", "matmul"]
)
def test_right_kernels_do_not_depend_on_the_schedule(kernel):
    orders = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]
    results = []
    for schedule, seed in orders:
        with emulated("fast", schedule, seed):
            results.append(kernel())
    for outputs in results[1:]:
        assert all(map(mx.array_equal, outputs, results[0]))


@contextlib.contextmanager
def remade(module, mode: str) -> Iterator[list]:
    """mlx-lm makes its kernels when a module is imported, if Metal is available."""
    with emulated(mode) as launches:
        importlib.reload(module)
        yield launches
    importlib.reload(module)


@pytest.mark.parametrize(
    "gate, masked, dtype, head_dim, mode",
    [
        ("scalar", False, F32, 128, "fast"),  # eight rows to a simdgroup
        ("scalar", False, BF16, 64, "fast"),
        ("scalar", True, F16, 64, "check"),
        ("vector", False, F32, 64, "check"),
        ("vector", True, BF16, 192, "fast"),
    ],
)
def test_runs_mlx_lms_gated_delta(gate, masked, dtype, head_dim, mode):
    B, T, Hk, Hv, Dk, Dv = 2, 5, 1, 2, head_dim, 16
    mx.random.seed(0)
    q, k = (mx.random.normal((2, B, T, Hk, Dk)) * Dk**-0.5).astype(dtype)
    v = mx.random.normal((B, T, Hv, Dv)).astype(dtype)
    beta = mx.sigmoid(mx.random.normal((B, T, Hv))).astype(dtype)
    g = mx.sigmoid(mx.random.normal((B, T, Hv) if gate == "scalar" else (B, T, Hv, Dk)))
    state = mx.random.normal((B, Hv, Dv, Dk))
    mask = mx.arange(B * T).reshape(B, T) % 3 != 1 if masked else None
    gated_delta = mlx_lm.models.gated_delta
    with remade(gated_delta, mode) as launches:
        y, new = gated_delta.gated_delta_kernel(q, k, v, g, beta, state, mask)
    q, k, v, beta = (x.astype(F32) for x in (q, k, v, beta))
    if mask is not None:  # the reference reads the memory for masked tokens too
        y = y * mask[..., None, None]
    y_ref, new_ref = gated_delta.gated_delta_ops(q, k, v, g, beta, state, mask)
    if mask is not None:
        y_ref = y_ref * mask[..., None, None]
    assert_close("state", new, new_ref, 1e-6)
    assert_close("y", y.astype(F32), y_ref, {F32: 1e-6, F16: 1e-3, BF16: 5e-3}[dtype])
    # All lanes write the 0 of a token that is masked.
    notes = launches[0].diagnostics
    assert bool(notes) == (masked and mode == "check")
    assert all(n.startswith("note: same-value race") for n in notes)
    assert lint(launches[0].source) == ""
    assert ("packed" in launches[0].name) == (head_dim == 128)


@pytest.mark.parametrize("dtype, mode", [(F32, "check"), (BF16, "fast")])
def test_runs_mlx_lms_ssm(dtype, mode):
    B, H, D, S, G = 2, 4, 16, 64, 2
    mx.random.seed(0)

    def normal(*shape, dtype=dtype):
        return mx.random.normal(shape).astype(dtype)

    arguments = [
        normal(B, 1, H, D),
        normal(H, dtype=F32),
        normal(B, 1, G, S),
        normal(B, 1, G, S),
        normal(H),
        normal(B, 1, H),
        normal(H),
        normal(B, H, D, S, dtype=F32),
    ]
    limits = (0.001, 100.0)
    ssm = mlx_lm.models.ssm
    with remade(ssm, mode) as launches:
        out, state = ssm.ssm_update_kernel(*arguments, limits)
    arguments = [x.astype(F32) for x in arguments]
    out_ref, state_ref = ssm.ssm_attn(*arguments, limits)
    assert_close("out", out.astype(F32), out_ref, 1e-5 if dtype == F32 else 1e-2)
    assert_close("state", state, state_ref, 1e-5 if dtype == F32 else 1e-2)
    assert launches[0].diagnostics == []
    assert lint(launches[0].source) == ""


def call(source: str, inputs=(), shape=(8,), dtype=F32, threads=1, **options):
    """Runs a kernel of inputs x0, x1, ... and an output ``out``."""
    names = ("header", "atomic_outputs", "compile_options", "ensure_row_contiguous")
    made = {name: options.pop(name) for name in names if name in options}
    kernel = mx.fast.metal_kernel(
        name="call",
        input_names=[f"x{i}" for i in range(len(inputs))],
        output_names=["out"],
        source=source,
        **made,
    )
    options = {"grid": (threads, 1, 1), "threadgroup": (threads, 1, 1), **options}
    return kernel(
        inputs=list(inputs), output_shapes=[shape], output_dtypes=[dtype], **options
    )[0]


# A matrix that a simdgroup stores, and what is then done with the same memory.
STORED = """
threadgroup float tile[64];
const uint i = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
const uint simd = simdgroup_index_in_threadgroup;
simdgroup_float8x8 m;
simdgroup_load(m, x0);
if (simd == 0) simdgroup_store(m, MEMORY);
{barrier}
{then}
out[i] = m.thread_elements()[0];
"""
AGAIN = "if (simd == 0) simdgroup_{}(m, MEMORY);"
LANES = "m.thread_elements()[0] = MEMORY[{}];"
# The element of a matrix that a lane holds: the same lane need not have stored it.
ITS_OWN = "(lane / 16 * 4 + lane / 2 % 4) * 8 + lane / 8 % 2 * 4 + lane % 2 * 2"
USES = {  # what comes then, and whether a barrier of the simdgroup is enough
    "load": (AGAIN.format("load"), True),
    "load by another simdgroup": ("if (simd == 1) simdgroup_load(m, MEMORY);", False),
    "store": ("m.thread_elements() += 1; " + AGAIN.format("store"), True),
    "read by its lanes": (f"if (simd == 0) {LANES.format(ITS_OWN)}", True),
    "read by all lanes": (LANES.format("i"), False),
}
BARRIERS = {
    "none": ("", ()),
    "simdgroup": ("simdgroup_barrier(mem_flags::mem_{});", (True,)),
    "threadgroup": ("threadgroup_barrier(mem_flags::mem_{});", (True, False)),
}


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("memory", ["threadgroup", "device"])
@pytest.mark.parametrize("then", USES)
def test_a_matrix_is_stored_by_the_whole_simdgroup(then, memory, barrier):
    use, simdgroup_suffices = USES[then]
    text, orders = BARRIERS[barrier]
    for flag in ("threadgroup", "device") if text else ("none",):
        source = STORED.format(barrier=text.format(flag), then=use)
        source = source.replace(
            "MEMORY", "tile" if memory == "threadgroup" else "(out + 64)"
        )
        arguments = [mx.arange(64).astype(F32)], (64 + 64 * (memory == "device"),)
        with emulated("check") as launches:
            if flag == memory and simdgroup_suffices in orders:
                call(source, *arguments, threads=64)
                assert launches[0].diagnostics == []
            else:
                message = f"race.*simdgroup 0.*no barrier with mem_{memory}"
                with pytest.raises(MetalError, match=message):
                    call(source, *arguments, threads=64)


@pytest.mark.parametrize(
    "then, ordered",
    [
        ("simdgroup_store(m, out);", True),  # computed from all that was loaded
        ("out[i] = 2;", False),
        (f"out[{ITS_OWN}] = 2;", False),
        ("simdgroup_barrier(mem_flags::mem_device); out[i] = 2;", True),
        ("simdgroup_barrier(mem_flags::mem_threadgroup); out[i] = 2;", False),
    ],
)
def test_a_matrix_is_loaded_by_the_whole_simdgroup(then, ordered):
    source = """
    const uint i = thread_index_in_threadgroup, lane = i;
    out[i] = out[i + 32] = 1;
    simdgroup_barrier(mem_flags::mem_device);
    simdgroup_float8x8 m;
    simdgroup_load(m, out);
    out[64 + i] = m.thread_elements()[0];
    """
    with emulated("check"):
        if ordered:
            call(source + then, shape=(96,), threads=32)
        else:
            with pytest.raises(MetalError, match="write after read.*by simdgroup 0"):
                call(source + then, shape=(96,), threads=32)


def test_lanes_that_take_turns_with_barriers_between():
    turns = """
    threadgroup int x[1];
    const uint i = thread_index_in_threadgroup;
    int sum = 0;
    for (uint turn = 0; turn < 32; turn++) {
      if (turn == i) x[0] = i == 0 ? 1 : sum + 1;
      simdgroup_barrier(mem_flags::mem_threadgroup);
      sum = x[0];
      simdgroup_barrier(mem_flags::mem_threadgroup);
      if (i == (turn + 1) % 32) sum = x[0];
    }
    out[i] = sum;
    """
    with emulated("check") as launches:
        assert call(turns, shape=(32,), threads=32).tolist() == [32] * 32
    assert launches[0].diagnostics == []


# Two documents of rows [T, C], a thread for each element of the output.
STRIDED = """
const uint i = thread_position_in_grid.x;
const int T = x0_shape[1], C = x0_shape[2];
const int b = i / (T * C), t = i / C % T, c = i % C;
out[i] = float(x0[{index}]);
"""
HONOURS = STRIDED.format(
    index="b * x0_strides[0] + t * x0_strides[1] + c * x0_strides[2]"
)
IGNORES = STRIDED.format(index="i") + "if (x0_strides[0] == 0x123456789) out[0] = 0;"
VIEWS = {
    "columns": lambda x: x[..., 2:5],
    "every other column": lambda x: x[..., ::2],
    "rows": lambda x: x[:, 1:3],
    "every other row": lambda x: x[:, ::2],
    "transposed": lambda x: x.swapaxes(1, 2),
    "documents last": lambda x: x.transpose(1, 2, 0),
    "backwards": lambda x: x[..., ::-1],
    "documents backwards": lambda x: x[::-1, :, 1:],
    "one row for all": lambda x: mx.broadcast_to(x[:, :1], (2, 7, 6)),
    "one element for all": lambda x: mx.broadcast_to(x[:1, :1, :1], (3, 2, 2)),
    "a column": lambda x: x[:, :, 3:4],
    "a column of one document": lambda x: x[1:, :, :1],
    "not evaluated": lambda x: (x * 1)[..., 1:4].swapaxes(0, 1),
}


@pytest.mark.parametrize("dtype", [F32, F16, BF16, mx.int8])
@pytest.mark.parametrize("view", VIEWS)
def test_strides(view, dtype):
    x = mx.arange(1, 1 + 2 * 4 * 6).reshape(2, 4, 6).astype(dtype)
    x = VIEWS[view](x)
    expected = x.astype(F32).flatten()

    def run(source: str, mode: str, copied: bool) -> mx.array:
        options = {"threads": x.size, "ensure_row_contiguous": copied}
        with emulated(mode):
            return call(source, [x], (x.size,), **options)

    for mode in ("fast", "check"):
        assert mx.array_equal(run(HONOURS, mode, False), expected)
        assert mx.array_equal(run(HONOURS, mode, True), expected)
        assert mx.array_equal(run(IGNORES, mode, True), expected)
    with contextlib.suppress(MetalError):  # beyond the end of what the view spans
        assert not mx.array_equal(run(IGNORES, "fast", False), expected)
    with contextlib.suppress(MetalError):
        assert not mx.array_equal(run(IGNORES, "check", False), expected)


@pytest.mark.parametrize("index, found", [(2, None), (1, "not an element"), (9, "out")])
def test_memory_between_elements_is_not_the_arrays(index, found):
    x = mx.arange(16)[8::2]  # 8, 10, 12, 14
    source = f"out[0] = x0[{index}]; if (x0_strides[0] != 2) out[0] = 0;"
    with emulated("check"):
        if found is None:
            assert call(source, [x], (1,), ensure_row_contiguous=False).item() == 10
        else:
            with pytest.raises(MetalError, match=found):
                call(source, [x], (1,), ensure_row_contiguous=False)


def test_contiguous_and_empty_views_are_taken_as_they_are():
    x = mx.arange(24).reshape(4, 6).astype(F32)
    source = "out[0] = x0[0] + x0_shape[0]; if (x0_strides[0] != 6) out[0] = -1;"
    for copied in (True, False):
        with emulated("check") as launches:
            options = {"ensure_row_contiguous": copied, "shape": (1,)}
            assert call(source, [x[2:]], **options).item() == 12 + 2
            assert call(source, [x[2:3]], **options).item() == 12 + 1
            empty = "out[0] = x0_shape[0] * 10 + x0_shape[1];"
            assert call(empty, [x[:, 2:2]], **options).item() == 40
        assert launches[0].loaded["x0"] == 4


def test_counts_bytes_exactly():
    source = """
    threadgroup float tile[64];
    simdgroup_float8x8 m;
    simdgroup_load(m, x0, 8, ulong2(0, 0), true);
    simdgroup_store(m, tile, 8);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint i = thread_position_in_threadgroup.x;
    out[i] = half(tile[i]) + half(tile[i + 32]);
    if (i < 3) out[i] += half(x1[i]);
    """
    x = mx.arange(64).astype(F32)
    arguments = [x, mx.array([1.0, 2.0, 3.0])]
    with emulated("check") as launches:
        out = call(source, arguments, (32,), F16, threads=32)
    x = np.arange(64).reshape(8, 8).T.reshape(64)
    expected = x[:32] + x[32:]
    expected[:3] += [1, 2, 3]
    assert out.tolist() == expected.tolist()
    launch = launches[0]
    assert launch.loaded == {"x0": 4 * 64, "x1": 4 * 3, "out": 2 * 3}
    assert launch.stored == {"x0": 0, "x1": 0, "out": 2 * 32 + 2 * 3}
    assert launch.threadgroup_bytes == 4 * 64
    assert launch.threadgroup_stored == launch.threadgroup_loaded == 4 * 64
    assert (launch.barriers, launch.simd_barriers, launch.simd_ops) == (1, 1, 2)
    assert (launch.grid, launch.threadgroup) == ((32, 1, 1), (32, 1, 1))
    assert launch.name.startswith("custom_kernel_call") and source in launch.source


def test_counts_every_threadgroup():
    source = """
    threadgroup float tile[32];
    const uint i = thread_position_in_threadgroup.x;
    tile[i] = x0[thread_position_in_grid.x];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[thread_position_in_grid.x] = simd_sum(tile[i ^ 1]);
    """
    with emulated("check") as launches:
        out = call(
            source,
            [mx.arange(80).astype(F32)],
            (80,),
            grid=(80, 1, 1),
            threadgroup=(32, 1, 1),
        )
    sums = [sum(range(a, b)) for a, b in ((0, 32), (32, 64), (64, 80))]
    assert out.tolist() == [sums[i // 32] for i in range(80)]
    launch = launches[0]
    assert launch.loaded["x0"] == launch.stored["out"] == 320
    assert launch.threadgroup_loaded == launch.threadgroup_stored == 320
    assert (launch.threadgroups, launch.barriers, launch.simd_ops) == (3, 3, 3)


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize(
    "type_, message",
    [("int", None), ("ushort", "cannot hold"), ("short", "cannot hold")],
)
def test_only_the_last_threadgroups_of_a_large_grid(type_, message, mode):
    source = f"const {type_} i = thread_position_in_grid.x; out[i] = x0[i];"
    size = {"grid": (70_000, 1, 1), "threadgroup": (32, 1, 1)}
    x = mx.arange(70_000).astype(F32)

    def run() -> mx.array:
        with emulated(mode, last=2) as launches:
            out = call(source, [x], x.shape, **size)
        assert launches[0].threadgroups == 2188
        return out

    if mode == "check" and message:
        with pytest.raises(MetalError, match=message):
            run()
    elif type_ != "short":  # which is out of bounds
        assert mx.array_equal(run()[-48:], x[-48:]) == (message is None)
        assert mx.isnan(run()[-49]).item()


def test_simd_functions():
    source = """
    const uint lane = thread_index_in_simdgroup;
    const int x = lane + 1;
    device int* row = out + lane * 12;
    row[0] = simd_sum(x);
    row[1] = simd_max(lane == 3 ? 100 : x);
    row[2] = simd_prefix_inclusive_sum(x);
    row[3] = simd_prefix_exclusive_sum(x);
    row[4] = simd_shuffle_down(x, 4);
    row[5] = simd_shuffle_up(x, 4);
    row[6] = simd_shuffle_xor(x, 1);
    row[7] = simd_broadcast(x, 7);
    row[8] = simd_shuffle(x, ushort(31 - lane));
    row[9] = simd_shuffle_and_fill_down(x, -x, ushort(30));
    row[10] = simd_any(x == 5) + 2 * simd_all(x == 5) + 4 * simd_is_first();
    row[11] = int(bfloat(simd_min(float(x))) + 1.5bf);
    """
    with emulated():
        out = call(source, shape=(32, 12), dtype=mx.int32, threads=32)
    x = np.arange(1, 33)
    expected = [
        np.full(32, x.sum()),
        np.full(32, 100),
        np.cumsum(x),
        np.cumsum(x) - x,
        np.where(x + 4 <= 32, x + 4, x),
        np.where(x > 4, x - 4, x),
        ((x - 1) ^ 1) + 1,
        np.full(32, 8),
        x[::-1],
        np.where(x <= 2, x + 30, -(x - 2)),
        1 + 4 * (x == 1),
        np.full(32, 2),
    ]
    assert np.array(out).T.tolist() == np.array(expected).tolist()


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_atomics_shapes_and_initial_values(mode):
    source = """
    const uint i = thread_position_in_grid.x;
    if (i < x2) {
      const uint at = elem_to_loc(i, x0_shape, x0_strides, x0_ndim);
      atomic_fetch_add_explicit(
          &out[int(x0[at]) % 4], square(T(x1[i % x1_shape[0]])), memory_order_relaxed);
    }
    """
    x = mx.arange(24).reshape(4, 3, 2).astype(F32).T  # copied: not contiguous
    with emulated(mode):
        out = call(
            source,
            [x, [1.0, 2.0, 3.0], 24],
            (4,),
            header="template <typename T> T square(T x) { return x * x; }\n",
            atomic_outputs=True,
            compile_options={"math_mode": "safe"},
            template=[("T", F32)],
            grid=(40, 1, 1),
            threadgroup=(32, 1, 1),
            init_value=0.5,
        )
    expected = np.full(4, 0.5)
    for i, value in enumerate(np.array(x).flatten()):
        expected[int(value) % 4] += (i % 3 + 1) ** 2
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_rounds_after_every_operation(dtype):
    x = mx.random.normal((32,), key=mx.random.key(0)).astype(dtype)
    source = "const uint i = thread_position_in_grid.x; out[i] = x0[i] * x0[i] + x0[i];"
    with emulated():
        out = call(source, [x], (32,), dtype, threads=32)
    assert mx.array_equal(out, x * x + x)


def test_denormals_are_zero_in_kernels_only():
    tiny = np.float32(1e-38)
    with emulated():
        out = call(
            "out[0] = x0 * 0.1f; out[1] = x0 - x1;",
            [mx.array(tiny), mx.array(tiny * 0.9)],
            (2,),
        )
    assert out.tolist() == [0, 0]
    assert tiny * np.float32(0.1) > 0


def test_edges():
    with emulated() as launches:
        assert call("out[0] = x0[0];", [mx.zeros((0,))], (0,), grid=(0, 1, 1)).size == 0
        x = call("out[0] = x0 + x1;", [2, True], (), threadgroup=(64, 1, 1))
    assert x.item() == 3 and x.shape == ()
    assert launches[0].threadgroups == 0
    assert launches[1].threadgroup == (1, 1, 1)  # not more than the grid


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("out[0] = 1;", {"inputs": [1.0] * 31}, "32 buffers"),
        ("out[0] = 1;", {"threads": 1025}, "at most 1024"),
        ("threadgroup float x[8193]; x[0] = 1;", {}, "limit is 32768"),
        ("out[0] = erf(1.0f);", {}, "undeclared identifier 'erf'"),
        ("threadgroup float x = 1; out[0] = x;", {}, "cannot be initialised"),
        ("out[1 << 30] = 1;", {}, "out of bounds|fault"),
        ("int i = 0; while (true) out[i += 4] = 1;", {}, "out of bounds"),
        ("volatile float x[1 << 20]; x[x0] = out[0] = 1;", {"inputs": [0]}, "private"),
    ],
)
def test_refuses(source, options, message):
    with emulated(), pytest.raises(MetalError, match=message):
        call(source, **options)


def handlers() -> list[bytes]:
    """Of the signals that a faulty kernel raises, also those set from C."""
    found = []
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        action = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).sigaction(number, None, action) == 0
        found.append(action.raw[:8])
    return found


def test_restores_everything():
    before = mx.fast.metal_kernel, mx.metal.is_available, handlers()
    with pytest.raises(MetalError), emulated():
        assert mx.metal.is_available()
        call("out[9] = 1;")
    assert (mx.fast.metal_kernel, mx.metal.is_available, handlers()) == before
    assert np.float32(1e-38) * np.float32(0.1) > 0


def test_one_kernel_in_several_blocks():
    with emulated():
        kernel = mx.fast.metal_kernel(
            name="k", input_names=["x"], output_names=["y"], source="y[0] = x[0];"
        )
    arguments = {
        "inputs": [mx.arange(8)],
        "grid": (1, 1, 1),
        "threadgroup": (1, 1, 1),
        "output_shapes": [(1,)],
        "output_dtypes": [mx.int32],
    }
    with emulated("check") as outer, emulated() as inner:
        kernel(**arguments)
    assert (len(outer), len(inner)) == (0, 1)
    with emulated("check") as launches:
        kernel(**arguments)
    assert launches[0].loaded["x"] == 4
    assert source_of(kernel, **arguments) == launches[0].source
    with pytest.raises(MetalError, match="emulated"):
        kernel(**arguments)


# Mistakes in address spaces and types, of which most compile for a CPU.
LINT = {
    "no address space": (TOKEN, "const float* p = q; " + TOKEN),
    "device as threadgroup": (TOKEN, "threadgroup float* p = o; " + TOKEN),
    "threadgroup as device": (TOKEN, "device float* p = kk; " + TOKEN),
    "write to constant": (TOKEN, "*(constant int*)&T = 3; " + TOKEN),
    "threadgroup to a helper": (TOKEN, "float z = first(kk); " + TOKEN),
    "threadgroup as private": (TOKEN, "set(kk[0]); " + TOKEN),
    "cast to no address space": (TOKEN, "float z = ((const float*)q)[0]; " + TOKEN),
    "matrix from private": (
        TOKEN,
        "float x[64]; simdgroup_float8x8 m; simdgroup_load(m, x, 8); " + TOKEN,
    ),
    "half and float": (TOKEN, "float z = max(half(1), 2.0f); " + TOKEN),
    "no such function": (TOKEN, "float z = erf(1.0f); " + TOKEN),
    "double": (TOKEN, "double z = 1; " + TOKEN),
    "new": (TOKEN, "float* z = new float[4]; " + TOKEN),
}
HELPERS = """
inline float first(const device float* p) { return p[0]; }
inline void set(thread float& x) { x = 1; }
"""


def test_lint_accepts_right_kernels():
    with emulated() as launches:
        step(edit((TOKEN, "float z = first(q); set(z); " + TOKEN)), HELPERS)
        for dtype in (F32, F16, BF16):
            matmul(dtype)
    assert [lint(launch.source) for launch in launches] == [""] * 4


@pytest.mark.parametrize("name", LINT)
def test_lint_refuses(name):
    with emulated() as launches, contextlib.suppress(MetalError):
        step(edit(LINT[name]), HELPERS)
    assert "error" in lint(launches[0].source)


def test_lint_knows_that_small_inputs_are_constant():
    with emulated() as launches:
        for size in (8, 7):
            call("out[0] = first(x0);", [mx.zeros(size)], header=HELPERS)
    assert lint(launches[0].source) == ""
    assert "__constant" in lint(launches[1].source)


# Sums of N tiles that are kept in an array of matrices.
TILES = """
constexpr int N = 4;
simdgroup_matrix<T, 8, 8> sums[N], x;
LOOP
for (int j = 0; j < N; j++) sums[j] = make_filled_simdgroup_matrix<T, 8>(T(0));
for (int i = 0; i < x0_shape[0]; i += 8) {
  simdgroup_load(x, x0 + i * 8);
  LOOP
  for (int j = 0; j < N; j++) simdgroup_multiply_accumulate(sums[j], x, x, sums[j]);
}
LOOP
for (int j = 0; j < N; j++) {
  sums[j].thread_elements()[1] *= sums[j].thread_elements()[0];
  simdgroup_store(sums[j], out + 64 * j);
}
"""
UNROLL, NO_UNROLL = (f"#pragma clang loop unroll({x})" for x in ("full", "disable"))
KEPT = """
struct Tiles { simdgroup_float8x8 tile[2]; };
struct Pair { Tiles tiles; float other; };
__attribute__((noinline)) void change(thread simdgroup_float8x8& x) { x *= 2; }
"""


def source_of_tiles(source: str, dtype=F32, header: str = "") -> str:
    with emulated() as launches, contextlib.suppress(MetalError):
        options = {"template": [("T", dtype)], "header": header, "threads": 32}
        call(source, [mx.zeros((16, 8), dtype)], (4, 64), dtype, **options)
    return launches[0].source


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_finds_matrices_in_memory(dtype):
    def found(loop: str, **options) -> list[str]:
        source = source_of_tiles(TILES.replace("LOOP", loop), dtype)
        return matrices_in_memory(source, **options)

    assert found(UNROLL) == found(UNROLL, unroll=False) == []
    assert found("") == []  # clang unrolls four turns of its own accord
    assert found("", unroll=False) == ["sums"]
    assert found(NO_UNROLL) == ["sums"]
    # One index that is not a constant is enough.
    one = TILES.replace("LOOP", UNROLL, 2).replace("LOOP", NO_UNROLL)
    source = source_of_tiles(one, dtype)
    assert matrices_in_memory(source) == ["sums"]
    assert "define" in ir(source) and "= alloca [4 x" in ir(source)


@pytest.mark.parametrize(
    "source, found",
    [
        ("simdgroup_float8x8 m; simdgroup_load(m, x0); simdgroup_store(m, out);", []),
        ("float m[4]; m[0] = x0[1]; out[1] = m[int(x0[0]) % 4];", []),
        (
            "Pair m; simdgroup_load(m.tiles.tile[int(x0[0])], x0); "
            "simdgroup_store(m.tiles.tile[int(x0[1])], out);",
            ["m"],
        ),
        (
            "simdgroup_float8x8 m, n; simdgroup_load(m, x0); n = m; keep(m); "
            "simdgroup_store(m, out); simdgroup_store(n, out + 64);",
            ["m"],
        ),
    ],
    ids=["a matrix", "an array of floats", "a struct", "by reference"],
)
def test_matrices_in_memory_are_found_by_type(source, found):
    header = KEPT.replace("change", "keep").replace("x *= 2;", 'asm("" : "+m"(x));')
    assert matrices_in_memory(source_of_tiles(source, header=header)) == found


@pytest.mark.parametrize(
    "value, message", [("", "pip install ziglang"), ("no-clang", "not a command")]
)
def test_says_what_compiler_to_install(value, message, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ALLMEM_CLANG", value)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetalError, match=message):
        toolchain.toolchain.__wrapped__()
