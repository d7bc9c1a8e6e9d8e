"""The cost of a model at any length: tables, a roofline, and plots."""

from dataclasses import asdict
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..cli.plots import Panel, draw
from ..cli.report import table
from ..config import AllMemConfig
from ..convert.base_config import carry_over, language_model
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


def lazy_model(config: dict[str, Any], allmem: dict[str, Any]) -> Model:
    """A model that has no weights in memory, and is made from no file.

    Args:
        config (dict): ``config.json`` of a converted model, or of a base.
        allmem (dict): settings that replace its own, or the defaults.

    Raises:
        AllMemError: if the base is not supported, or a setting impossible.
    """
    if config.get("model_type") == MODEL_TYPE:
        block = {**config.get("allmem", {}), **allmem}
        args = ModelArgs.from_dict({**config, "allmem": block})
    else:
        config = language_model(config)
        base = {**config, **carry_over(config)}
        args = ModelArgs(base=base, allmem=AllMemConfig.for_base(base, **allmem))
    model = Model(args)
    name = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    dtype = getattr(mx, str(name), mx.bfloat16)
    casts = model.cast_predicate
    model.update(
        tree_map_with_path(
            lambda name, x: x.astype(dtype) if casts(name) else x, model.parameters()
        )
    )
    if packed := config.get("quantization"):
        allowed = model.quant_predicate

        def quantized(path: str, module: nn.Module) -> bool | dict:
            if not hasattr(module, "to_quantized") or not allowed(path, module):
                return False
            return packed.get(path, True)

        nn.quantize(
            model,
            packed["group_size"],
            packed["bits"],
            mode=packed.get("mode", "affine"),
            class_predicate=quantized,
        )
    return model


def costs(sizes: Sizes, length: int) -> dict[str, Any]:
    """All costs of one length, in FLOPs and bytes."""
    reading = {
        FULL: flops.reading(sizes, length, full=True),
        WINDOW: flops.reading(sizes, length, memory=False),
        ALLMEM: flops.reading(sizes, length),
    }
    ring = flops.ring_bytes(sizes)
    state = {
        FULL: flops.cache_bytes(sizes, length),
        WINDOW: ring,
        ALLMEM: ring + flops.memory_bytes(sizes),
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
                "operations": flops.decoding(sizes, length, full=full),
                "bytes": asdict(flops.decoding_bytes(sizes, length, full=full)),
            }
            for name, full in ((FULL, True), (ALLMEM, False))
        },
    }


def fraction(ratio: float) -> str:
    """A ratio in words: ``1/30.9``, or ``0.62`` if it is not small."""
    return f"1/{1 / ratio:.1f}" if ratio < 0.5 else f"{ratio:.2f}"


def describe(rows: list[dict[str, Any]]) -> str:
    """The tables of :func:`costs` by length."""
    reading, decoding = [], []
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
        full, parts = (x["bytes"] for x in row["decoding"].values())
        total = sum(parts.values())
        moved = [sum(full.values()), total, *parts.values()]
        share = f"{100 * parts['memory'] / total:.1f} %"
        decoding.append([length, *(f"{x / 1e6:,.1f}" for x in moved), share])
    share = 100 * rows[-1]["memory, share of reading"]
    head = ["tokens", FULL, WINDOW, ALLMEM, "channel", "mixers", "all"]
    head += ["full, MB", "window, MB", "AllMem, MB", "state"]
    lines = [
        "Reading: GFLOPs of the token mixers and of the channel mixers; state in MB",
        table(head, reading),
        f"The memory's share of AllMem's reading: {share:.1f} % of the FLOPs",
        "",
        "Decoding a token: MB moved at least",
    ]
    head = ["after", FULL, ALLMEM, "weights", "window", "memory", "memory's share"]
    return "\n".join([*lines, table(head, decoding)])


def roofline(sizes: Sizes, length: int) -> list[dict[str, Any]]:
    """Tokens per second that a chip's bandwidth (decoding) and arithmetic (reading)
    allow at most."""
    rows: list[dict[str, Any]] = [{"chip": chip.name} for chip in CHIPS]
    for name, full in ((FULL, True), (ALLMEM, False)):
        moved = flops.decoding_bytes(sizes, length, full=full).total
        each = flops.reading(sizes, length, full=full).total / length
        for chip, row in zip(CHIPS, rows, strict=True):
            row[name] = {
                "decoding": chip.bandwidth * 1e9 / moved,
                "reading": chip.arithmetic and chip.arithmetic * 1e12 / each,
            }
    return rows


def describe_roofline(rows: list[dict[str, Any]], length: int) -> str:
    """The table of :func:`roofline`."""
    columns = [(x, name) for x in ("reading", "decoding") for name in (FULL, ALLMEM)]
    cells = [
        [
            row["chip"],
            *(f"{row[name][x]:,.0f}" if row[name][x] else "-" for x, name in columns),
        ]
        for row in rows
    ]
    head = ["chip", *(f"{x}, {name}" for x, name in columns)]
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
