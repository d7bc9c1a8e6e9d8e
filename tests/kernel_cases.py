"""Sizes and inputs at which the kernels are tried, on a CPU and on a GPU alike."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from metal_host import Launch, emulated
from mlx_lm.models.cache import ArraysCache

from allmem_mlx import fast_weights, kernels
from allmem_mlx.fast_weights import FastWeights
from allmem_mlx.memory import Memory

NAMES = ("memory_inputs", "memory_read", "memory_fold", "memory_write")
TAPS = 4


@dataclass(frozen=True)
class Case:
    """B documents, n heads of width p, h hidden units, T tokens, the model's type."""

    batch: int
    heads: int
    head_dim: int
    hidden_dim: int
    tokens: int
    dtype: mx.Dtype = mx.float32

    def __str__(self) -> str:
        return (
            f"B{self.batch}-n{self.heads}-p{self.head_dim}-h{self.hidden_dim}"
            f"-T{self.tokens}-{str(self.dtype).removeprefix('mlx.core.')}"
        )


# The sizes that SmolLM2-135M and Qwen3-0.6B are converted to; then every head width and
# hidden width: one token, full and ragged tiles, inputs of fewer than 8 elements.
MODELS = {"SmolLM2-135M": (3, 64, 128), "Qwen3-0.6B": (8, 64, 128)}
CASES = [
    Case(1, *MODELS["SmolLM2-135M"], 1),
    Case(1, *MODELS["SmolLM2-135M"], 64, mx.bfloat16),
    Case(1, *MODELS["Qwen3-0.6B"], 1, mx.bfloat16),
    Case(1, 1, 32, 32, 1),
    Case(3, 1, 32, 64, 7, mx.bfloat16),
    Case(1, 2, 32, 96, 65),
    Case(1, 1, 32, 128, 8, mx.float16),
    Case(3, 2, 64, 64, 17, mx.float16),
    Case(1, 2, 64, 128, 130),
    Case(1, 1, 64, 192, 9, mx.bfloat16),
    Case(1, 1, 64, 256, 3),
    Case(1, 1, 96, 96, 33, mx.bfloat16),
    Case(1, 2, 96, 192, 1),
    Case(1, 1, 96, 288, 70, mx.float16),
    Case(1, 1, 96, 384, 4),
    Case(3, 1, 128, 128, 5, mx.float16),
    Case(1, 1, 128, 256, 31),
    Case(1, 1, 128, 384, 1, mx.bfloat16),
    Case(1, 1, 128, 512, 40),
]

# Relative root mean square error, by the type of what is compared.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 5e-3, mx.bfloat16: 5e-3}


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
        self.norms = fast_weights.row_norms(self.initial)
        batched = [(case.batch, *w.shape) for w in self.initial]
        self.weights = FastWeights(
            *(w + self._normal(case.batch, *w.shape, scale=0.1) for w in self.initial)
        )
        self.scales = fast_weights.row_scales(self.weights, self.norms)
        self.momentum = FastWeights(*(self._normal(*s, scale=0.05) for s in batched))
        self.grads = FastWeights(*(self._normal(*s, scale=0.1) for s in batched))

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
            "tail": self._normal(B, TAPS - 1, 3 * n * p).astype(dtype),
            "conv_weight": self._normal(3 * n * p, TAPS).astype(dtype),
            "rate_bias": self._normal(5 * n),
            "q_norm": 1 + self._normal(p, scale=0.1),
            "k_norm": 1 + self._normal(p, scale=0.1),
            "learning_rate": 0.2,
        }

    def memory_read(self) -> dict:
        B, n, T, p = self._tokens()
        return {
            "weights": self.weights,
            "queries": self._unit(B, n, T, p),
            "gates": self._uniform(B, n, T),
            "norm": 1 + self._normal(p, scale=0.1),
            "eps": 0.5,
            "dtype": self.case.dtype,
        }

    def memory_fold(self) -> dict:
        B, n, T, p = self._tokens()
        rows = [self._unit(B, n, T, p), self._normal(B, n, T, p, scale=0.5)]
        return {
            "weights": self.weights,
            "scales": self.scales,
            "grads": self.grads,
            "decay": self._uniform(B, n),
            "rows": mx.concatenate([*rows, self._uniform(B, n, T, 4)], axis=-1),
        }

    def memory_write(self) -> dict:
        B, n, _, _ = self._tokens()
        return {
            "weights": self.weights,
            "scales": self.scales,
            "momentum": self.momentum,
            "grads": self.grads,
            "decay": self._uniform(B, n),
            "norms": self.norms,
            "max_norm": 3.0,
        }

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


def launches(
    memory: Memory, state: list[mx.array], token: int, tokens: int = 1
) -> Counter:
    """What MLX launches when a memory that has read ``token`` tokens reads ``tokens``.

    It is counted in the graph of the call. ``kernels.operations`` has to answer with
    the kernels.
    """
    graph: list[dict] = []

    def step(u, *state):
        cache = ArraysCache(len(state))
        cache.cache = list(state)
        return [memory(u, cache, token, embedded=u), *cache.cache]

    u = mx.zeros((1, tokens, memory.in_proj.weight.shape[1]), state[0].dtype)
    mx.eval(u, state, memory.parameters())
    mx.export_function(graph.append, step, u, *state)
    names = [node["name"] for node in graph if node["type"] == "primitive"]
    return Counter(name for name in names if name not in VIEWS)


def device_bytes(launch: Launch) -> int:
    """Bytes of arguments loaded and stored. The shapes that MLX adds are constants."""
    return sum(
        count
        for traffic in (launch.loaded, launch.stored)
        for name, count in traffic.items()
        if not name.endswith("_shape")
    )


def floor_bytes(arguments: dict, result: list[mx.array]) -> int:
    """Every argument and every result once."""
    return sum(x.nbytes for x in [*arrays(arguments), *result])


@contextmanager
def emulated_kernels(**options):
    """Lets ``kernels.py`` run on the CPU; options as :func:`metal_host.emulated`."""
    with emulated(**options) as launches:
        kernels._kernel.cache_clear()
        try:
            yield launches
        finally:
            kernels._kernel.cache_clear()
