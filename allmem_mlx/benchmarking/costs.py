"""The cost of a model at any length: tables, a roofline, and plots."""

from dataclasses import asdict
from fnmatch import fnmatch
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..cli.plots import Panel, draw
from ..cli.report import table
from ..convert.base_config import carry_over, hybrid_config, language_model
from ..convert.published import language_model_quantization
from ..evaluation.systems import ALLMEM, FULL, WINDOW
from ..model import MODEL_TYPE, Model, ModelArgs
from . import flops
from .flops import Sizes


class Chip(NamedTuple):
    """A Mac's chip.

    Args:
        bandwidth (float): GB/s, as Apple states it.
        arithmetic (float): TFLOPS in float32 or narrower: the stated peak, or the
            reported one. ``None`` if neither is known.
    """

    name: str
    bandwidth: float
    arithmetic: float | None


CHIPS = [
    Chip("M1", 68, 2.6),
    Chip("M1 Pro", 200, 5.2),
    Chip("M1 Max", 400, 10.4),
    Chip("M2", 100, 3.55),
    Chip("M3", 100, None),
    Chip("M4", 120, 2.9),
    Chip("M4 Pro", 273, None),
    Chip("M4 Max", 546, 14.0),
    Chip("M5", 153, None),
    Chip("M5 Max", 614, 40.0),
]


# What is compared: options of the functions in flops.py.
SYSTEMS: dict[str, dict[str, bool]] = {
    FULL: {"full": True},
    WINDOW: {"memory": False},
    ALLMEM: {},
}


def lazy_model(config: dict[str, Any], allmem: dict[str, Any]) -> Model:
    """A model that has no weights in memory, and is made from no file.

    Args:
        config (dict): ``config.json`` of a converted model, or of a base.
        allmem (dict): settings that replace its own, or the defaults.

    Raises:
        AllMemError: if the base is not supported, or a setting impossible.
    """
    config = _hybrid(config, allmem)
    model = Model(ModelArgs.from_dict(config))
    if config["tie_word_embeddings"] and "lm_head" in model:
        model.sanitize({})  # some model files learn it from the weights
    dtype = getattr(mx, str(config.get("torch_dtype")), mx.bfloat16)
    casts = model.cast_predicate
    model.update(
        tree_map_with_path(
            lambda name, x: x.astype(dtype) if casts(name) else x, model.parameters()
        )
    )
    packed = config.get("quantization")
    if packed is None and config.get("quantization_config"):
        packed = _other_quantization(config["quantization_config"], model)
    if packed:
        _quantize(model, packed)
    model.eval()
    return model


def _hybrid(config: dict[str, Any], allmem: dict[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a converted model, from one or from that of a base."""
    if config.get("model_type") == MODEL_TYPE:
        return {**config, "allmem": {**config.get("allmem", {}), **allmem}}
    base = language_model(config)
    base = {**base, **carry_over(base)}
    inner = config.get("text_config")
    places = (base, config, inner if isinstance(inner, dict) else {})
    dtypes = (x.get(name) for x in places for name in ("torch_dtype", "dtype"))
    base["torch_dtype"] = next(filter(None, dtypes), None)
    if packed := base.get("quantization"):
        base["quantization"] = language_model_quantization(packed)
    return {
        **base,
        "model_type": MODEL_TYPE,
        "base_model_type": base["model_type"],
        "allmem": asdict(hybrid_config(base, allmem)),
    }


def _other_quantization(config: dict[str, Any], model: Model) -> dict[str, Any]:
    """The settings in MLX's form of OpenAI's quantisation, the only other one whose
    weights are taken as they are: mxfp4, but for some modules."""
    kept = config.get("modules_to_not_convert") or []
    names = [name for name, _ in model.named_modules()]
    packed: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for name in names:
        if any(
            fnmatch(name, f"{pattern}{end}") for pattern in kept for end in ("", ".*")
        ):
            packed[name] = False
    return packed


def _quantize(model: Model, packed: dict[str, Any]) -> None:
    """Packs the weights as ``quantization`` of a ``config.json`` says."""
    allowed = model.quant_predicate

    def quantized(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or not allowed(path, module):
            return False
        group = packed.get(path, packed)
        if not group or module.weight.shape[-1] % group["group_size"]:
            return False
        return bool(group) if group is packed else group

    nn.quantize(
        model,
        packed["group_size"],
        packed["bits"],
        mode=packed.get("mode", "affine"),
        class_predicate=quantized,
    )


def costs(sizes: Sizes, length: int) -> dict[str, Any]:
    """All costs of one length, in FLOPs and bytes."""
    reading = {
        name: flops.reading(sizes, length, **which) for name, which in SYSTEMS.items()
    }
    kept = flops.ring_bytes(sizes) + sizes.recurrent_state
    state = {
        FULL: flops.cache_bytes(sizes, length) + sizes.recurrent_state,
        WINDOW: kept,
        ALLMEM: kept + flops.memory_bytes(sizes),
    }
    full, allmem = reading[FULL], reading[ALLMEM]
    return {
        "length": length,
        "reading": {name: asdict(x) for name, x in reading.items()},
        "token mixer": {name: x.mixer for name, x in reading.items()},
        "token mixer, AllMem / full": allmem.mixer / full.mixer,
        "all, AllMem / full": allmem.total / full.total,
        "memory, share of reading": allmem.memory / allmem.total,
        "state": state,
        "state, AllMem / full": state[ALLMEM] / state[FULL],
        "decoding": {
            name: {
                "operations": flops.decoding(sizes, length, **which),
                "bytes": asdict(flops.decoding_bytes(sizes, length, **which)),
            }
            for name, which in SYSTEMS.items()
        },
    }


# What decoding moves, as the columns of a table.
PARTS = {
    "weights": "weights",
    "attention": "window",
    "recurrent": "recurrent",
    "memory": "memory",
}


def fraction(ratio: float) -> str:
    """A ratio in words: ``1/30.9``, or ``0.62`` if it is not small."""
    return f"1/{1 / ratio:.1f}" if ratio < 0.5 else f"{ratio:.2f}"


def describe(rows: list[dict[str, Any]]) -> str:
    """The tables of :func:`costs` by length."""
    reading, decoding = [], []
    # Where no layer is recurrent, there is nothing to show of them.
    moved = rows[-1]["decoding"][ALLMEM]["bytes"]
    shown = {x: name for x, name in PARTS.items() if x != "recurrent" or moved[x]}
    for row in rows:
        length = f"{row['length']:,}"
        reading.append(
            [
                length,
                *(f"{x / 1e9:,.1f}" for x in row["token mixer"].values()),
                f"{row['reading'][ALLMEM]['channel'] / 1e9:,.1f}",
                fraction(row["token mixer, AllMem / full"]),
                fraction(row["all, AllMem / full"]),
                *(f"{x / 1e6:,.1f}" for x in row["state"].values()),
                fraction(row["state, AllMem / full"]),
            ]
        )
        moved = {name: x["bytes"] for name, x in row["decoding"].items()}
        totals = [sum(parts.values()) for parts in moved.values()]
        parts = {name: x for name, x in moved[ALLMEM].items() if name in shown}
        share = f"{100 * parts['memory'] / totals[-1]:.1f} %"
        cells = [*totals, *parts.values()]
        decoding.append([length, *(f"{x / 1e6:,.1f}" for x in cells), share])
    share = 100 * rows[-1]["memory, share of reading"]
    head = ["tokens", FULL, WINDOW, ALLMEM, "channel", "mixers", "all"]
    head += ["full, MB", "window, MB", "AllMem, MB", "state"]
    lines = [
        "Reading: GFLOPs of the token mixers and of the channel mixers; state in MB, "
        "at most",
        table(head, reading),
        f"The memory's share of AllMem's reading: {share:.1f} % of the FLOPs",
        "",
        "Decoding a token: MB moved at least",
    ]
    head = ["after", *SYSTEMS, *shown.values(), "memory's share"]
    return "\n".join([*lines, table(head, decoding)])


def roofline(sizes: Sizes, length: int) -> list[dict[str, Any]]:
    """Tokens per second that a chip's bandwidth (decoding) and arithmetic (reading)
    allow at most."""
    rows: list[dict[str, Any]] = [{"chip": chip.name} for chip in CHIPS]
    for name, which in SYSTEMS.items():
        moved = flops.decoding_bytes(sizes, length, **which).total
        each = flops.reading(sizes, length, **which).total / length
        for chip, row in zip(CHIPS, rows, strict=True):
            row[name] = {
                "decoding": chip.bandwidth * 1e9 / moved,
                "reading": chip.arithmetic and chip.arithmetic * 1e12 / each,
            }
    return rows


def describe_roofline(rows: list[dict[str, Any]], length: int) -> str:
    """The table of :func:`roofline`."""
    columns = [(x, name) for x in ("reading", "decoding") for name in SYSTEMS]
    cells = [
        [
            row["chip"],
            *(f"{row[name][x]:,.0f}" if row[name][x] else "-" for x, name in columns),
        ]
        for row in rows
    ]
    head = ["chip"]
    for x in ("reading", "decoding"):
        head += [f"{x}, full", "window", "AllMem"]
    title = f"At most, tokens/s at {length:,} tokens (arithmetic, not measured)"
    return f"{title}\n{table(head, cells)}"


def plot(result: dict[str, Any], path: str) -> None:
    """Draws FLOPs and state by length.

    Args:
        result (dict): what ``cost --json`` writes.
        path (str): the PNG for light pages; see :func:`draw`.
    """
    rows = result["rows"]
    last = rows[-1]

    def panel(title: str, quantity: str, name: str, unit: float) -> Panel:
        curves = {
            system: [(row["length"], row[name][system] / unit) for row in rows]
            for system in (ALLMEM, FULL, WINDOW)
        }
        title = f"{fraction(last[f'{name}, AllMem / full'])} of {title}"
        return Panel(title, "tokens read", quantity, curves, y_log=True)

    panels = [
        panel("full attention's FLOPs", "token mixers, GFLOPs", "token mixer", 1e9),
        panel("its state", "state, MB", "state", 1e6),
    ]
    draw(panels, f"{result['title']}; after {last['length']:,} tokens", path)
