"""The rotary embedding of a GGUF file, in the form of transformers."""

import math
from typing import Any

import numpy as np

from .source import Source

FACTORS = "rope_freqs.weight"
LONGROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


def rotated(source: Source) -> float:
    """The fraction of a head that is rotated."""
    size = source.head_dim
    count: int = source.get("rope.dimension_count", int, size)
    if not 0 < count <= size or count % 2:
        raise source.error(f"rope.dimension_count {count} of {size} is not supported")
    return count / size


def rope_parameters(source: Source) -> dict[str, Any]:
    """The ``rope_parameters`` of ``config.json``.

    Raises:
        AllMemError: if the embedding is scaled in a way that is not supported.
    """
    theta = source.get("rope.freq_base", float, 10000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if (part := rotated(source)) != 1.0:
        rope["partial_rotary_factor"] = part
    for name in LONGROPE:
        if name in source.tensors:
            raise source.error(f"tensor {name} (longrope) is not supported")
    kind = source.get("rope.scaling.type", str, "linear")
    factor = source.get("rope.scale_linear", float, 0.0)
    factor = source.get("rope.scaling.factor", float, factor) or 1.0
    if kind not in ("none", "linear", "yarn"):
        raise source.error(f"rope.scaling.type {kind!r} is not supported")
    if kind == "none" or factor == 1.0:
        kind = "default"
    if FACTORS in source.tensors:
        if kind != "default":
            raise source.error(f"tensor {FACTORS} beside {kind} scaling of RoPE")
        return {**rope, **_llama3(source, theta)}
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        length = source.get("context_length", int)
        original = "rope.scaling.original_context_length"
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": source.get(original, int, length),
            "beta_fast": source.get("rope.scaling.yarn_beta_fast", float, 32.0),
            "beta_slow": source.get("rope.scaling.yarn_beta_slow", float, 1.0),
        }
    return rope


def _frequencies(theta: float, size: int) -> np.ndarray:
    return theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)


def _llama3_factors(frequencies: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The divisor of each frequency in Llama 3.1's scaling."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    slowed: np.ndarray = (1 - smooth) / settings["factor"] + smooth
    return 1 / slowed


def _llama3(source: Source, theta: float) -> dict[str, Any]:
    """The settings that give the factors in a file, one for each frequency.

    Between frequencies that stay and those that are divided by ``factor``, 1 / factor
    is linear in the frequency. The line has two parameters for three settings, so the
    first is fixed at 1, its value in every model. With fewer than two frequencies on
    the line, the second is fixed too, at 4, and with none, the third.
    """
    tensor = source.tensors[FACTORS]
    size = round(source.head_dim * rotated(source))
    if tensor.rows != 1 or tensor.columns != size // 2:
        raise source.error(f"tensor {FACTORS} has the shape {tensor.shape}")
    factors = tensor.read(0, 1)[0].astype(np.float64)
    if np.all(factors == 1):
        return {}
    frequencies = _frequencies(theta, size)
    factor = round(float(factors.max()), 4)
    line = (factors > 1) & (factors < factor)
    smooth = (1 / factors[line] - 1 / factor) / (1 - 1 / factor)
    turns = frequencies[line] / (2 * math.pi)
    high, original = 4.0, 8192
    if line.sum() >= 2:
        slope, start = np.polyfit(turns, smooth, 1)
        high = round(1 - 1 / start, 2) if start else 0.0
    if line.any():
        original = round(float(np.mean((smooth * (high - 1) + 1) / turns)))
    settings = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    if not (
        high > 1
        and original > 0
        and np.allclose(_llama3_factors(frequencies, settings), factors, rtol=1e-4)
    ):
        raise source.error(f"tensor {FACTORS} is not that of a known scaling of RoPE")
    return settings
