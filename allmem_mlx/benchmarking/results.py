"""Speed and memory as tables and curves: the best of trials, and what follows."""

from typing import Any

from ..cli.report import Panel, panels, table
from ..evaluation.systems import ALLMEM, WINDOW
from ..model import Model
from . import flops
from .speed import CHUNK, Measured, kinds, latency

FIRST = "first of a chunk"


def summarize(model: Model, trials: list[list[Measured]]) -> list[dict[str, Any]]:
    """The best of all trials, for each length and model: what disturbs a measurement
    makes it slower. Percentiles are those of the trial whose p99 is lowest."""
    rows = []
    for same in zip(*trials, strict=True):
        first = same[0]
        due = kinds(model, first.length, len(first.latencies))
        rows.append(
            {
                "system": first.name,
                "length": first.length,
                "prefill": min(x.prefill for x in same),
                "prompt_tps": max(x.prompt_tps for x in same),
                "generation_tps": max(x.generation_tps for x in same),
                "latency": min(
                    (latency(x.latencies, due) for x in same),
                    key=lambda found: found["p99"] or 0.0,
                ),
                "peak": max(x.peak for x in same),
                "state": first.state,
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each length: what the others take for each of AllMem, and what AllMem takes
    for each of it at the shortest length and at half the length."""
    own = {row["length"]: row for row in rows if row["system"] == ALLMEM}
    shortest = own[min(own)]
    found = []
    for length, row in own.items():
        found.append(
            {
                "length": length,
                "others": {
                    other["system"]: {
                        "prefill": other["prefill"] / row["prefill"],
                        "decode": row["generation_tps"] / other["generation_tps"],
                        "peak": other["peak"] / row["peak"],
                        "state": other["state"] / row["state"],
                    }
                    for other in rows
                    if other["length"] == length and other["system"] != ALLMEM
                },
                "decode speed beside the shortest": row["generation_tps"]
                / shortest["generation_tps"],
                "prefill beside half the length": row["prefill"]
                / own[length // 2]["prefill"]
                if length // 2 in own
                else None,
            }
        )
    return found


def shares(model: Model, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The memory's share of time at the longest length, against window + sinks alone,
    beside its share of operations and bytes; see :mod:`flops`. Empty if window +
    sinks were not measured, or if there is no memory."""
    length = max(row["length"] for row in rows)
    at = {row["system"]: row for row in rows if row["length"] == length}
    if WINDOW not in at or model.memory_is_off:
        return {}
    of = flops.Sizes.of(model)
    reading, decoding = (
        flops.operations(of, length, block=of.config.chunk),
        flops.decoding_bytes(of, length),
    )
    speed = at[ALLMEM]["generation_tps"] / at[WINDOW]["generation_tps"]
    return {
        "reading, time": 1 - at[WINDOW]["prefill"] / at[ALLMEM]["prefill"],
        "reading, operations": reading.memory / reading.total,
        "decoding, time": 1 - speed,
        "decoding, bytes": decoding.memory / decoding.total,
    }


def describe(
    rows: list[dict[str, Any]], found: list[dict[str, Any]], share: dict[str, float]
) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    head = ["tokens", "", "prefill tok/s", "decode tok/s", "peak GB", "state MB"]
    head += ["p50 ms", "p95", "p99", "max", "fold", "chunk"]
    lines = [
        table(
            head,
            [
                [
                    f"{row['length']:,}",
                    row["system"],
                    f"{row['prompt_tps']:.1f}",
                    f"{row['generation_tps']:.1f}",
                    f"{row['peak'] / 1e9:.3f}",
                    f"{row['state'] / 1e6:.1f}",
                    *(ms(x) for x in row["latency"].values()),
                ]
                for row in rows
            ],
        ),
        "",
    ]
    for row in found:
        for name, ratio in row["others"].items():
            lines.append(
                f"{row['length']:,} tokens, {name} / AllMem: "
                + ", ".join(f"{what} {value:.2f}" for what, value in ratio.items())
            )
    for row in found:
        line = f"{row['length']:,} tokens: decoding at "
        line += f"{row['decode speed beside the shortest']:.3f} of the speed after the "
        line += "shortest"
        if (double := row["prefill beside half the length"]) is not None:
            line += f", prefill {double:.2f} times that of half the length"
        lines.append(line)
    if share:
        lines.append(
            "The memory's share of: "
            + ", ".join(f"{name} {100 * value:.1f} %" for name, value in share.items())
        )
    return "\n".join(lines)


def plot(
    rows: list[dict[str, Any]], last: list[Measured], due: list[str], title: str
) -> bytes:
    """Memory and speed by length, and the time of each token of the last trial."""
    names = list(dict.fromkeys(row["system"] for row in rows))

    def curve(name: str, value: str, unit: float = 1.0) -> list[tuple[float, float]]:
        return [
            (row["length"], row[value] / unit) for row in rows if row["system"] == name
        ]

    trace: dict[str, list[tuple[float, float]]] = {}
    for found in last:
        ms = [1000 * x for x in found.latencies]
        trace[found.name] = list(enumerate(ms))
    own = trace[ALLMEM]
    marked = [point for point, kind in zip(own, due, strict=True) if kind == CHUNK]
    trace[FIRST] = marked
    speeds = {f"{name}, reading": curve(name, "prompt_tps") for name in names}
    decoding = tuple(f"{name}, decoding" for name in names)
    speeds |= {
        label: curve(name, "generation_tps")
        for name, label in zip(names, decoding, strict=True)
    }
    peaks = {name: curve(name, "peak", 1e9) for name in names}
    longest = max(row["length"] for row in rows)
    return panels(
        [
            Panel("tokens", "peak memory, GB", peaks),
            Panel("tokens", "tokens/s", speeds, y_log=True, dashed=decoding),
            Panel(
                f"token after {longest:,}", "ms", trace, x_log=False, dashed=(FIRST,)
            ),
        ],
        title,
    )
