"""Sizes and inputs at which the kernels are tried, on a CPU and on a GPU alike."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from metal_host import Launch, emulated
from mlx_lm.models.cache import ArraysCache

from allmem_mlx.memory import ops
from allmem_mlx.memory.fast_weights import FastWeights
from allmem_mlx.memory.layer import Memory, fast_weights, kernels

NAMES = ("memory_inputs", "memory_read", "memory_fold", "memory_write")
TAPS = 4
WRITTEN = 100  # tokens of the chunk that a write ends


@dataclass(frozen=True)
class Case:
    """B documents, n heads of width p, h hidden units, T tokens, the model's type;
    whether the chunk has a G already; and what is written, see ``AllMemConfig``."""

    batch: int
    heads: int
    head_dim: int
    hidden_dim: int
    tokens: int
    dtype: mx.Dtype = mx.float32
    is_open: bool = True
    updates: str = "all"

    def __str__(self) -> str:
        return (
            f"B{self.batch}-n{self.heads}-p{self.head_dim}-h{self.hidden_dim}"
            f"-T{self.tokens}-{str(self.dtype).removeprefix('mlx.core.')}"
            f"{'' if self.is_open else '-start'}"
            f"{'' if self.updates == 'all' else f'-{self.updates}'}"
        )

    @property
    def written(self) -> int:
        """Matrices of a network that are written, the last ones."""
        return 1 if self.updates == "down" else 3


# The sizes of the embedded default, and what SmolLM2-135M and Qwen3-0.6B are converted
# to; then every head width and hidden width: one token, full and ragged tiles, inputs
# of fewer than 8 elements.
MODELS = {
    "default": (3, 128, 512),
    "SmolLM2-135M": (3, 64, 128),
    "Qwen3-0.6B": (8, 64, 128),
}
CASES = [
    Case(1, *MODELS["default"], 64, mx.bfloat16, False, "down"),
    Case(1, *MODELS["default"], 64, mx.bfloat16, True, "down"),
    Case(3, 2, 32, 64, 7, mx.float16, updates="down"),
    Case(1, 2, 64, 128, 190, is_open=False, updates="down"),
    Case(2, 1, 96, 192, 1, mx.bfloat16, updates="down"),
    Case(3, 2, 128, 128, 85, is_open=False, updates="down"),
    Case(1, *MODELS["default"], 64, mx.bfloat16, False),
    Case(1, *MODELS["default"], 64, mx.bfloat16),
    Case(1, *MODELS["SmolLM2-135M"], 1, is_open=False),
    Case(1, *MODELS["SmolLM2-135M"], 64, mx.bfloat16),
    Case(1, *MODELS["Qwen3-0.6B"], 1, mx.bfloat16),
    Case(1, 1, 32, 32, 1),
    Case(1, 1, 32, 32, 1, is_open=False),
    Case(3, 1, 32, 64, 7, mx.bfloat16),
    Case(1, 2, 32, 96, 65, is_open=False),
    Case(1, 1, 32, 128, 8, mx.float16),
    Case(3, 2, 64, 64, 17, mx.float16),
    Case(1, 2, 64, 128, 190, is_open=False),
    Case(1, 1, 64, 192, 9, mx.bfloat16),
    Case(1, 1, 64, 256, 3),
    Case(1, 1, 96, 96, 33, mx.bfloat16),
    Case(1, 2, 96, 192, 1),
    Case(1, 1, 96, 288, 70, mx.float16),
    Case(1, 1, 96, 384, 4, is_open=False),
    Case(3, 2, 128, 128, 85, mx.float16, False),
    Case(1, 1, 128, 256, 31),
    Case(1, 1, 128, 384, 1, mx.bfloat16),
    Case(1, 1, 128, 512, 40),
]

# Relative root mean square error, by the type of what is compared.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 5e-3, mx.bfloat16: 5e-3}
WRITE_TOLERANCE = 2e-6  # no sum of products


def differences(name: str, actual: list, expected: list) -> list[str]:
    """What is not the same in what an operation and its reference compute.

    Numbers that are not finite have to be the same, and no NaN is right.
    """
    found = []
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if a.dtype != e.dtype or a.shape != e.shape:
            found.append(f"{name}, array {i}: {a.dtype} {a.shape}, {e.dtype} {e.shape}")
            continue
        tolerance = WRITE_TOLERANCE if name == "memory_write" else TOLERANCE[e.dtype]
        x, y = (np.array(array.astype(mx.float32), np.float64) for array in (a, e))
        finite = np.isfinite(y)
        size = np.linalg.norm(y[finite]) or 1.0
        error = np.linalg.norm(x[finite] - y[finite]) / size
        if not error <= tolerance:
            found.append(f"{name}, array {i}: relative error {error:.1e}")
        if np.isnan(y).any() or (x[~finite] != y[~finite]).any():
            found.append(f"{name}, array {i}: not finite")
    return found


class Inputs:
    """Random arguments of the four operations, as large as in a trained memory."""

    def __init__(self, case: Case, seed: int = 0):
        self.case = case
        self.rng = np.random.default_rng(seed)
        n, p, h = case.heads, case.head_dim, case.hidden_dim
        self.initial = FastWeights(
            self._normal(n, h, p, scale=0.5),
            self._normal(n, h, p, scale=0.5),
            self._normal(n, p, h, scale=h**-0.5),
        )
        written = self.initial[-case.written :]
        self.norms = fast_weights.row_norms(written)
        batched = [(case.batch, *w.shape) for w in written]
        self.weights = tuple(
            w + self._normal(case.batch, *w.shape, scale=0.1) for w in written
        )
        self.scales = fast_weights.row_scales(self.weights, self.norms)
        self.momentum = tuple(self._normal(*s, scale=0.05) for s in batched)
        self.grads = tuple(self._normal(*s, scale=0.1) for s in batched)

    def _normal(self, *shape: int, scale: float = 1.0) -> mx.array:
        return mx.array(self.rng.normal(scale=scale, size=shape), mx.float32)

    def _uniform(self, *shape: int) -> mx.array:
        return mx.array(self.rng.uniform(size=shape), mx.float32)

    def of(self, name: str) -> dict:
        """Arguments of an operation, by its name."""
        return getattr(self, name)()

    def memory_inputs(self) -> dict:
        B, T = self.case.batch, self.case.tokens
        n, p, dtype = self.case.heads, self.case.head_dim, self.case.dtype
        return {
            "projected": self._normal(B, T, 3 * n * p + 5 * n).astype(dtype),
            "conv_state": self._normal(B, TAPS - 1, 3 * n * p).astype(dtype),
            "conv_weight": self._normal(3 * n * p, TAPS).astype(dtype),
            "rate_bias": self._normal(5 * n),
            "q_norm": 1 + self._normal(p, scale=0.1),
            "k_norm": 1 + self._normal(p, scale=0.1),
            "learning_rate": 0.2,
        }

    def memory_read(self) -> dict:
        B, n, T, p = self._tokens()
        return {
            "weights": self.initial.replaced(self.weights),
            "queries": self._unit(B, n, T, p),
            "gates": self._uniform(B, n, T),
            "norm": 1 + self._normal(p, scale=0.1),
            "eps": 0.5,
            "dtype": self.case.dtype,
        }

    def memory_fold(self) -> dict:
        B, n, T, p = self._tokens()
        rows = [self._unit(B, n, T, p), self._normal(B, n, T, p, scale=0.5)]
        is_open = self.case.is_open
        return {
            "weights": self.initial.replaced(self.weights),
            "scales": self.scales,
            "grads": self.grads if is_open else None,
            "decay_sum": self._uniform(B, n) if is_open else None,
            "rows": mx.concatenate([*rows, self._uniform(B, n, T, 4)], axis=-1),
        }

    def memory_write(self) -> dict:
        B, n, _, _ = self._tokens()
        return {
            "weights": self.weights,
            "scales": self.scales,
            "momentum": self.momentum,
            "grads": self.grads,
            "squares": self._squares(),
            "decay_sum": WRITTEN * self._uniform(B, n),
            "tokens": WRITTEN,
            "norms": self.norms,
            "max_norm": 3.0,
        }

    def _squares(self) -> mx.array:
        """Sums of squares of G, in as many parts as memory_fold has them."""
        B, n, parts = self.case.batch, self.case.heads, self.case.hidden_dim // 8
        shares = self._uniform(B, n, self.case.written, parts)
        shares = shares / shares.sum(-1, keepdims=True)
        return fast_weights.squared_norms(self.grads)[..., None] * shares

    def _tokens(self) -> tuple[int, int, int, int]:
        case = self.case
        return case.batch, case.heads, case.tokens, case.head_dim

    def _unit(self, *shape: int) -> mx.array:
        x = self._normal(*shape)
        return x / mx.linalg.norm(x, axis=-1, keepdims=True)


def arrays(result) -> list[mx.array]:
    """Every array of an operation's result or arguments, in order."""
    if isinstance(result, mx.array):
        return [result]
    if isinstance(result, dict):
        result = result.values()
    if isinstance(result, (tuple, list, type({}.values()))):
        return [x for part in result for x in arrays(part)]
    return []


def reference(name: str, arguments: dict) -> list[mx.array]:
    """What an operation should compute. Sums of squares, which come in as many parts as
    suit who made them, are summed."""
    result = arrays(getattr(ops, name)(**arguments))
    if name == "memory_fold":
        # In float64: in float32 those of 65,536 numbers are off by 1e-5.
        *grads, _, _ = result
        squares = [np.square(np.array(g, np.float64)).sum((-2, -1)) for g in grads]
        with np.errstate(over="ignore"):
            result[-1] = mx.array(np.stack(squares, axis=-1).astype(np.float32))
    return result


def computed(
    name: str, arguments: dict, within: ModuleType = kernels
) -> list[mx.array]:
    """What the kernel computes, to be compared with :func:`reference`."""
    result = arrays(getattr(within, name)(**arguments))
    if name == "memory_fold":
        result[-1] = result[-1].sum(-1)
    return result


def copied(name: str, arguments: dict, within: ModuleType = kernels) -> bool:
    """Whether MLX would copy a chunk that is a part of a block, for a kernel that can
    do without."""
    make, made = within._kernel, []

    def kernel(*signature, **options):
        made.append(make(*signature, **options))
        return made[-1]

    with emulated_kernels(), patch.object(within, "_kernel", kernel):
        getattr(within, name)(**arguments)
    by_chunk = {"queries", "rows"} & set(arguments)
    return bool(by_chunk) and made[0].ensure_row_contiguous


def changed(arguments: dict, change: Callable[[mx.array], mx.array], *names: str):
    """The same arguments, with ``change`` made to those named, or to all."""

    def make(x):
        if isinstance(x, FastWeights):
            return FastWeights(*map(make, x))
        if isinstance(x, tuple):
            return tuple(map(make, x))
        return change(x) if isinstance(x, mx.array) else x

    return {k: make(x) if k in names or not names else x for k, x in arguments.items()}


def strided(arguments: dict) -> dict:
    """The same numbers, of which no array is contiguous that can be otherwise."""

    def spread(x: mx.array) -> mx.array:
        """Every second row of every second column of a larger array."""
        if x.ndim < 2:
            return x
        return mx.repeat(mx.repeat(x, 2, axis=-1), 3, axis=-2)[..., 1::3, ::2]

    return changed(arguments, spread)


def of_longer_text(arguments: dict) -> dict:
    """The same tokens in the midst of others, as a chunk stands in a block."""

    def between(x: mx.array) -> mx.array:
        around = mx.full((*x.shape[:2], 5, *x.shape[3:]), mx.nan)
        return mx.concatenate([around, x, around], axis=2)[:, :, 5:-5]

    return changed(arguments, between, "queries", "gates", "rows")


# Operations, and how arrays that they are given may lie in memory.
LAYOUTS = [
    *((name, strided) for name in NAMES),
    *((name, of_longer_text) for name in ("memory_read", "memory_fold")),
]


def _times(factor: float) -> Callable[[mx.array], mx.array]:
    return lambda x: (x * factor).astype(x.dtype)


def _to(value: float) -> Callable[[mx.array], mx.array]:
    return lambda x: mx.full(x.shape, value, x.dtype)


def _squared(arguments: dict) -> dict:
    """With the sums of squares of the G that is in them."""
    squares = fast_weights.squared_norms(arguments["grads"])
    return {**arguments, "squares": squares[..., None]}


# Inputs that are rare or should not be, by operation: from arguments to arguments.
EXTREMES: dict[str, dict[str, Callable[[dict], dict]]] = {
    "memory_inputs": {
        "zero": lambda x: changed(x, _to(0), "projected", "conv_state", "rate_bias"),
        "large": lambda x: changed(x, _times(100), "projected", "conv_state"),
        "small": lambda x: changed(x, _times(1e-12), "projected", "conv_state"),
        "high rates": lambda x: changed(x, _to(200), "rate_bias"),
        "low rates": lambda x: changed(x, _to(-200), "rate_bias"),
    },
    "memory_read": {
        "zero": lambda x: changed(x, _to(0), "queries", "gates"),
        "zero queries": lambda x: changed(x, _to(0), "queries"),
        "large": lambda x: changed(x, _times(100), "queries", "weights"),
        "small": lambda x: changed(x, _times(1e-12), "queries"),
        "empty": lambda x: changed(x, _to(0), "weights"),
    },
    "memory_fold": {
        "zero": lambda x: changed(x, _to(0), "rows", "grads", "decay_sum"),
        "zero G": lambda x: changed(x, _to(0), "grads"),
        "large": lambda x: changed(x, _times(100), "rows"),
        "small": lambda x: changed(x, _times(1e-12), "rows", "grads"),
        "huge G": lambda x: changed(x, _to(1e20), "grads"),
        "empty": lambda x: changed(x, _to(0), "weights"),
    },
    "memory_write": {
        "zero": lambda x: _squared(
            changed(x, _to(0), "momentum", "grads", "decay_sum")
        ),
        "zero G": lambda x: _squared(changed(x, _to(0), "grads")),
        "large": lambda x: _squared(changed(x, _times(100), "grads", "momentum")),
        "small": lambda x: _squared(changed(x, _times(1e-12), "grads", "momentum")),
        "huge G": lambda x: _squared(changed(x, _to(1e20), "grads")),
        "empty": lambda x: _squared(changed(x, _to(0), "weights", "momentum", "grads")),
    },
}


def state_after(memory: Memory, dtype: mx.Dtype, token: int) -> list[mx.array | None]:
    """Arrays of the shapes of a memory's state that has read ``token`` tokens."""
    c, state = memory.config, memory.initial_state(1, dtype)
    if token % c.chunk >= c.fold:
        zeros = tuple(mx.zeros(w.shape) for w in state.weights)
        state = state._replace(grads=zeros, decay_sum=mx.zeros((1, c.heads)))
    if token % c.fold:
        pending = mx.zeros((1, c.heads, c.fold, 2 * c.head_dim + 4))
        state = state._replace(pending=pending)
    return state.arrays()


# Operations that only look at their input in another way, and launch nothing.
VIEWS = {
    "Broadcast",
    "ExpandDims",
    "Flatten",
    "Slice",
    "Split",
    "Transpose",
    "Unflatten",
}


def launches(memory: Memory, dtype: mx.Dtype, token: int, tokens: int = 1) -> Counter:
    """What MLX launches when a memory that has read ``token`` tokens reads ``tokens``.

    It is counted in the graph of the call. ``kernels.operations`` has to answer with
    the kernels.
    """
    graph: list[dict] = []
    state = state_after(memory, dtype, token)

    def step(u):
        cache = ArraysCache(len(state))
        cache.cache = list(state)
        after = memory(u, cache, token, embedded=u), *cache.cache
        return [x for x in after if x is not None]

    u = mx.zeros((1, tokens, memory.in_proj.weight.shape[1]), dtype)
    mx.eval(u, state, memory.parameters())
    # What is contiguous is not copied to be so; no exported graph has the operation.
    with patch.object(mx, "contiguous", lambda x: x):
        mx.export_function(graph.append, step, u)
    names = [node["name"] for node in graph if node["type"] == "primitive"]
    return Counter(name for name in names if name not in VIEWS)


# What each threadgroup of a head loads again: once from memory, then from a cache.
SHARED = {
    "memory_inputs": ("conv_weight", "rate_bias", "q_norm", "k_norm"),
    "memory_read": ("w_gate", "w_up", "w_down", "norm_weight"),
    "memory_fold": ("rows",),
    "memory_write": (),
}


def device_bytes(name: str, case: Case, launch: Launch) -> tuple[int, int]:
    """Bytes of arguments loaded and stored: once, and again by other threadgroups of a
    head. The shapes and strides that MLX adds are constants."""
    sharing = launch.threadgroups // (case.batch * case.heads)
    once = again = 0
    for argument, count in [*launch.loaded.items(), *launch.stored.items()]:
        if argument in SHARED[name]:
            once += count // sharing
            again += count - count // sharing
        elif not argument.endswith(("_shape", "_strides")):
            once += count
    return once, again


def floor_bytes(name: str, arguments: dict, result: list[mx.array]) -> int:
    """Every argument that is needed and every result once."""
    if name == "memory_fold" and len(arguments["scales"]) == 1:
        # The gradient of down depends on gate and up, which have no scales.
        arguments = {**arguments, "weights": arguments["weights"][:2], "scales": ()}
    return sum(x.nbytes for x in [*arrays(arguments), *result])


@contextmanager
def emulated_kernels(**options):
    """Lets ``kernels.py`` run on the CPU; options as :func:`metal_host.emulated`."""
    clear = kernels._kernel.cache_clear
    with emulated(**options) as launches:
        clear()
        try:
            yield launches
        finally:
            clear()
