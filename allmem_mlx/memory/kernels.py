"""The memory's four operations on Metal, and the one rule that picks them.

Each function runs one kernel of ``metal/`` and computes what its namesake in
``ops.py`` does, where arguments and results are described. Sums are in float32
whatever the model's type. A token's result does not depend on the tokens it came with.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import mlx.core as mx

from ..config import AllMemConfig
from ..errors import warn
from . import kernel_check, ops
from .fast_weights import FastWeights, Matrices

HEAD_DIMS = (32, 64, 96, 128)
MAX_EXPANSION = 4  # hidden units for each channel of a head
MAX_TAPS = 8
SEGMENT = 32  # tokens a simdgroup of memory_inputs walks through
FOLD_TOKENS = 64  # tokens for which memory_fold goes through G once
THREADGROUP_BYTES = 32768

WEIGHTS = ("gate", "up", "down")


class Operations(NamedTuple):
    """The four operations of a memory, on Metal or not."""

    memory_inputs: Callable
    memory_read: Callable
    memory_fold: Callable
    memory_write: Callable


def operations(
    config: AllMemConfig, training: bool, dtype: mx.Dtype = mx.float32
) -> Operations:
    """The operations to use now, for activations of a type.

    The kernels need an Apple GPU and the head widths they are written for, and have no
    gradient. ``ALLMEM_KERNELS=0`` turns them off, to compare. Where one of them fails,
    or computes something else than the reference, the reference is used.
    """
    if (
        training
        or mx.default_device() != mx.gpu
        or not metal_has_simdgroups()
        or os.environ.get("ALLMEM_KERNELS") == "0"
        or config.head_dim not in HEAD_DIMS
        or config.hidden_dim % config.head_dim
        or config.hidden_dim > MAX_EXPANSION * config.head_dim
        or not 2 <= config.conv_kernel <= MAX_TAPS
    ):
        return REFERENCE
    sizes = config.head_dim, config.hidden_dim, config.conv_kernel
    return METAL if _work(*sizes, dtype, len(config.written)) else REFERENCE


@cache
def _work(p: int, h: int, taps: int, dtype: mx.Dtype, written: int) -> bool:
    """Whether the kernels do here what they should; if not, says so, once."""
    fault = kernel_check.fault(METAL, REFERENCE, p, h, taps, dtype, written)
    if fault:
        warn(f"the memory runs without its Metal kernels, and more slowly: {fault}")
    return not fault


@cache
def metal_has_simdgroups() -> bool:
    """Whether there is a GPU that can run the kernels. That of a virtual machine has
    Metal, but no sums and no matrices of a simdgroup."""
    if not mx.metal.is_available():
        return False
    return "Paravirtual" not in str(mx.device_info(mx.gpu).get("device_name"))


def _text(name: str) -> str:
    return files("allmem_mlx.metal").joinpath(name).read_text()


def _names(prefix: str, suffix: str = "", number: int = 3) -> tuple[str, ...]:
    """Of the last matrices of a network."""
    return tuple(f"{prefix}_{part}{suffix}" for part in WEIGHTS[-number:])


def _named(prefix: str, matrices: Matrices) -> dict[str, mx.array]:
    """Matrices by their names in a kernel."""
    names = _names(prefix, number=len(matrices))
    return dict(zip(names, matrices, strict=True))


# Inputs and outputs that some forms of a kernel do without.
OPTIONAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "memory_fold": (
        ("w_down", *_names("s"), *_names("g"), "decay_sum"),
        ("gate_out", "up_out"),
    ),
    "memory_write": (
        tuple(name for kind in "wsmgn" for name in _names(kind)),
        tuple(name for kind in "wsm" for name in _names(kind, "_out")),
    ),
}


@cache
def _kernel(
    name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], strided: bool = False
) -> Any:
    """``strided`` inputs come as they are, and the kernel goes by the strides of what
    may be a part of something larger; the others go through ``mx.contiguous``, which
    launches nothing for what is contiguous. What a kernel does without has a name in
    its text, where template arguments keep it from being used: the name is given to the
    first that is there."""
    optional = OPTIONAL.get(name, ((), ()))
    stand_ins = "".join(
        f"auto {missing} = {given[0]};\n"
        for given, names in zip((inputs, outputs), optional, strict=True)
        for missing in names
        if missing not in given
    )
    return mx.fast.metal_kernel(
        name=f"allmem_{name}",
        input_names=inputs,
        output_names=outputs,
        source=stand_ins + _text(f"{name}.metal"),
        header=_text("memory.h"),
        ensure_row_contiguous=not strided,
        # IEEE arithmetic: what a state becomes must not depend on what a compiler
        # takes for fast enough.
        compile_options={"math_mode": "safe"},
    )


@cache
def _constant(*values: float) -> mx.array:
    return mx.array(values, mx.float32)


def tokens_of_read(tokens: int, p: int, h: int) -> int:
    """Tokens that a threadgroup of ``memory_read`` reads: each loads W once, so as many
    as leave the GPU enough threadgroups and fit into a threadgroup's memory."""

    def suits(size: int) -> bool:
        room = 4 * (size * (p + 4 + h + 4) + p)
        return tokens > 5 * size and room <= THREADGROUP_BYTES

    return next((size for size in (32, 16) if suits(size)), 8)


def units_of_fold(h: int) -> int:
    """Hidden units of a threadgroup of ``memory_fold``, 8 to a simdgroup: an eighth of
    them, so that 3 heads give a GPU work."""
    return max(u for u in range(8, max(h // 8, 8) + 1, 8) if h % u == 0)


def memory_inputs(
    *,
    projected: mx.array,
    conv_state: mx.array,
    conv_weight: mx.array,
    rate_bias: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    learning_rate: float,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    B, T, _ = projected.shape
    n, p, taps = rate_bias.size // 5, q_norm.size, conv_weight.shape[1]
    kernel = _kernel(
        "memory_inputs",
        (
            "projected",
            "conv_state",
            "conv_weight",
            "rate_bias",
            "q_norm",
            "k_norm",
            "rate_offset",
        ),
        ("queries", "rows", "gates", "new_conv_state"),
    )
    offset = _constant(ops.rate_offset(learning_rate))
    segments = -(-T // SEGMENT)
    return tuple(
        kernel(
            inputs=[
                projected,
                conv_state,
                conv_weight,
                rate_bias,
                q_norm,
                k_norm,
                offset,
            ],
            template=[
                ("InT", projected.dtype),
                ("P", p),
                ("TAPS", taps),
                ("SEGMENT", SEGMENT),
            ],
            grid=(3 * 32, n, B * segments),
            threadgroup=(3 * 32, 1, 1),
            output_shapes=[
                (B, n, T, p),
                (B, n, T, 2 * p + 4),
                (B, n, T),
                conv_state.shape,
            ],
            output_dtypes=[mx.float32, mx.float32, mx.float32, projected.dtype],
        )
    )


def memory_read(
    *,
    weights: FastWeights,
    queries: mx.array,
    gates: mx.array,
    norm: mx.array,
    eps: float,
    dtype: mx.Dtype,
) -> mx.array:
    B, n, T, p = queries.shape
    h = weights.gate.shape[-2]
    kernel = _kernel(
        "memory_read",
        (*_names("w"), "queries", "gates", "norm_weight", "eps"),
        ("out",),
        strided=True,
    )
    tokens = tokens_of_read(T, p, h)
    every = weights.gate.ndim == weights.down.ndim  # has a batch dimension: is written
    threads = 256 if p == 128 else 4 * p
    return kernel(
        inputs=[
            *map(mx.contiguous, weights),
            queries,
            gates,
            mx.contiguous(norm),
            _constant(eps),
        ],
        template=[
            ("InT", dtype),
            ("P", p),
            ("H", h),
            ("TOKENS", tokens),
            ("ALL", every),
        ],
        grid=(threads, B * n, -(-T // tokens)),
        threadgroup=(threads, 1, 1),
        output_shapes=[(B, T, n * p)],
        output_dtypes=[dtype],
    )[0]


def memory_fold(
    *,
    weights: FastWeights,
    scales: Matrices,
    grads: Matrices | None,
    decay_sum: mx.array | None,
    rows: mx.array,
) -> tuple[Matrices, mx.array, mx.array]:
    (B, n, p, h), written = weights.down.shape, len(scales)
    inputs = {"w_gate": weights.gate, "w_up": weights.up}
    if written == 3:
        inputs |= {"w_down": weights.down, **_named("s", scales)}
    if grads is not None and decay_sum is not None:
        inputs |= {**_named("g", grads), "decay_sum": decay_sum}
    new = ("gate_out", "up_out", "down_out")[-written:]
    kernel = _kernel(
        "memory_fold",
        (*inputs, "rows"),
        (*new, "decay_sum_out", "squares"),
        strided=True,
    )
    units = units_of_fold(h)
    *added, decay_sum, squares = kernel(
        inputs=[*map(mx.contiguous, inputs.values()), rows],
        template=[
            ("P", p),
            ("H", h),
            ("UNITS", units),
            ("TOKENS", FOLD_TOKENS),
            ("OPEN", grads is not None),
            ("ALL", written == 3),
        ],
        grid=(4 * h, B * n, 1),
        threadgroup=(4 * units, 1, 1),
        output_shapes=[
            *[(B, n, *w.shape[-2:]) for w in weights[-written:]],
            (B, n),
            (B, n, written, h // 8),
        ],
        output_dtypes=[mx.float32] * (written + 2),
    )
    return tuple(added), decay_sum, squares


def memory_write(
    *,
    weights: Matrices,
    scales: Matrices,
    momentum: Matrices,
    grads: Matrices,
    squares: mx.array,
    decay_sum: mx.array,
    tokens: int,
    norms: Matrices,
    max_norm: float,
) -> tuple[Matrices, Matrices, Matrices]:
    (B, n, p, h), written = weights[-1].shape, len(weights)
    state = _named("w", weights) | _named("s", scales) | _named("m", momentum)
    inputs = {
        **state,
        **_named("g", grads),
        "squares": squares,
        "decay_sum": decay_sum,
        **_named("n", norms),
        "limits": _constant(max_norm, tokens),
    }
    kernel = _kernel(
        "memory_write", tuple(inputs), tuple(f"{name}_out" for name in state)
    )
    outputs = kernel(
        inputs=list(inputs.values()),
        template=[
            ("P", p),
            ("H", h),
            ("PARTS", squares.shape[-1]),
            ("ALL", written == 3),
        ],
        grid=(32 * p, written * n, B),
        threadgroup=(256, 1, 1),
        output_shapes=[x.shape for x in state.values()],
        output_dtypes=[mx.float32] * len(state),
    )
    new = [tuple(outputs[i * written : (i + 1) * written]) for i in range(3)]
    return new[0], new[1], new[2]


METAL = Operations(memory_inputs, memory_read, memory_fold, memory_write)
REFERENCE = Operations(
    ops.memory_inputs,
    ops.memory_read,
    ops.memory_fold,
    ops.memory_write,
)
