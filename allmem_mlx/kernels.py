"""The memory's four operations on Metal, and the one rule that picks them.

Each function runs one kernel of ``metal/`` and computes what its namesake in
``memory_ops.py`` does, where arguments and results are described. Sums are in float32
whatever the model's type. A token's result does not depend on the tokens it came with.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import mlx.core as mx

from . import memory_ops
from .config import AllMemConfig
from .fast_weights import FastWeights

HEAD_DIMS = (32, 64, 96, 128)
MAX_EXPANSION = 4  # hidden units for each channel of a head
MAX_TAPS = 8
SEGMENT = 64  # tokens a simdgroup of memory_inputs walks through
MAX_UNITS = 128  # hidden units of a threadgroup of memory_fold, 8 a simdgroup
THREADGROUP_BYTES = 32768

WEIGHTS = ("gate", "up", "down")


class Operations(NamedTuple):
    """The four operations of a memory, on Metal or not."""

    memory_inputs: Callable
    memory_read: Callable
    memory_fold: Callable
    memory_write: Callable


def operations(config: AllMemConfig, training: bool) -> Operations:
    """The operations to use now.

    The kernels need an Apple GPU and the head widths they are written for, and have no
    gradient. ``ALLMEM_KERNELS=0`` turns them off, to compare, or to get on with work
    where one of them should fail.
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
    return METAL


@cache
def metal_has_simdgroups() -> bool:
    """Whether there is a GPU that can run the kernels. That of a virtual machine has
    Metal, but no sums and no matrices of a simdgroup."""
    if not mx.metal.is_available():
        return False
    return "Paravirtual" not in str(mx.device_info(mx.gpu).get("device_name"))


def _text(name: str) -> str:
    return files("allmem_mlx.metal").joinpath(name).read_text()


@cache
def _kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    return mx.fast.metal_kernel(
        name=f"allmem_{name}",
        input_names=inputs,
        output_names=outputs,
        source=_text(f"{name}.metal"),
        header=_text("memory.h"),
        # IEEE arithmetic: what a state becomes must not depend on what a compiler
        # takes for fast enough.
        compile_options={"math_mode": "safe"},
    )


def _names(prefix: str, suffix: str = "") -> tuple[str, ...]:
    return tuple(f"{prefix}_{part}{suffix}" for part in WEIGHTS)


def _like(*arrays: mx.array) -> dict[str, list]:
    return {
        "output_shapes": [x.shape for x in arrays],
        "output_dtypes": [x.dtype for x in arrays],
    }


@cache
def _scalar(value: float) -> mx.array:
    return mx.array(value, mx.float32)


def memory_inputs(
    *,
    projected: mx.array,
    tail: mx.array,
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
            "tail",
            "conv_weight",
            "rate_bias",
            "q_norm",
            "k_norm",
            "rate_offset",
        ),
        ("queries", "rows", "gates", "new_tail"),
    )
    offset = _scalar(memory_ops.rate_offset(learning_rate))
    segments = -(-T // SEGMENT)
    return tuple(
        kernel(
            inputs=[projected, tail, conv_weight, rate_bias, q_norm, k_norm, offset],
            template=[
                ("InT", projected.dtype),
                ("P", p),
                ("TAPS", taps),
                ("SEGMENT", SEGMENT),
            ],
            grid=(3 * 32, n, B * segments),
            threadgroup=(3 * 32, 1, 1),
            output_shapes=[(B, n, T, p), (B, n, T, 2 * p + 4), (B, n, T), tail.shape],
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
    )
    # Two rows of 4 bytes for each token of a tile, each padded by 4 tokens.
    fits = 4 * (p + h) * (16 + 4) <= THREADGROUP_BYTES
    simdgroups = 16 if p <= 64 else p // 8
    return kernel(
        inputs=[*weights, queries, gates, norm, _scalar(eps)],
        template=[
            ("InT", dtype),
            ("P", p),
            ("H", h),
            ("TOKENS", 16 if T > 8 and fits else 8),
        ],
        grid=(32 * simdgroups, B * n, 1),
        threadgroup=(32 * simdgroups, 1, 1),
        output_shapes=[(B, T, n * p)],
        output_dtypes=[dtype],
    )[0]


def memory_fold(
    *,
    weights: FastWeights,
    scales: FastWeights,
    grads: FastWeights,
    decay: mx.array,
    rows: mx.array,
) -> tuple[FastWeights, mx.array]:
    B, n, h, p = weights.gate.shape
    kernel = _kernel(
        "memory_fold",
        (*_names("w"), *_names("s"), *_names("g"), "decay", "rows"),
        ("gate_out", "up_out", "down_out", "decay_out"),
    )
    units = max(u for u in range(8, MAX_UNITS + 1, 8) if h % u == 0)
    *grads, decay = kernel(
        inputs=[*weights, *scales, *grads, decay, rows],
        template=[
            ("P", p),
            ("H", h),
            ("UNITS", units),
            ("TOKENS", 64 if p <= 96 else 32),
        ],
        grid=(4 * h, B * n, 1),
        threadgroup=(4 * units, 1, 1),
        **_like(*weights, decay),
    )
    return FastWeights(*grads), decay


def memory_write(
    *,
    weights: FastWeights,
    scales: FastWeights,
    momentum: FastWeights,
    grads: FastWeights,
    decay: mx.array,
    norms: FastWeights,
    max_norm: float,
) -> tuple[FastWeights, FastWeights, FastWeights, FastWeights]:
    B, n, h, p = weights.gate.shape
    kernel = _kernel(
        "memory_write",
        (
            *_names("w"),
            *_names("s"),
            *_names("m"),
            *_names("g"),
            "mu",
            *_names("n"),
            "max_norm",
        ),
        tuple(name for kind in "wsmg" for name in _names(kind, "_out")),
    )
    outputs = kernel(
        inputs=[
            *weights,
            *scales,
            *momentum,
            *grads,
            decay,
            *norms,
            _scalar(max_norm),
        ],
        template=[("P", p), ("H", h)],
        grid=(3 * 512, B * n, 1),
        threadgroup=(512, 1, 1),
        **_like(*weights, *scales, *momentum, *grads),
    )
    new = [FastWeights(*outputs[i : i + 3]) for i in range(0, 12, 3)]
    return new[0], new[1], new[2], new[3]


METAL = Operations(memory_inputs, memory_read, memory_fold, memory_write)
REFERENCE = Operations(
    memory_ops.memory_inputs,
    memory_ops.memory_read,
    memory_ops.memory_fold,
    memory_ops.memory_write,
)
