"""Speed and memory as tables and curves: the best of trials, and ratios."""

from typing import Any

from ..cli.plots import Panel, Point, draw
from ..cli.report import table
from ..evaluation.systems import ALLMEM, FULL, WINDOW
from ..model import Model
from . import flops
from .speed import CHUNK, Measured, kinds, latency

FIRST = "first of a chunk"


def summarize(model: Model, trials: list[list[Measured]]) -> list[dict[str, Any]]:
    """The best of all trials, for each length and model, since disturbances only make
    them slower. Percentiles are those of the trial with the lowest p99."""
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
    """For each length the ratios of the others to AllMem, and of AllMem to itself at
    the shortest length and at half the length."""
    allmem = {row["length"]: row for row in rows if row["system"] == ALLMEM}
    shortest = allmem[min(allmem)]
    found = []
    for length, row in allmem.items():
        others = {
            other["system"]: {
                "prefill": other["prefill"] / row["prefill"],
                "decode": row["generation_tps"] / other["generation_tps"],
                "peak": other["peak"] / row["peak"],
                "state": other["state"] / row["state"],
            }
            for other in rows
            if other["length"] == length and other["system"] != ALLMEM
        }
        speed = row["generation_tps"] / shortest["generation_tps"]
        half = allmem.get(length // 2)
        found.append(
            {
                "length": length,
                "others": others,
                "decode speed beside the shortest": speed,
                "prefill beside half the length": half
                and row["prefill"] / half["prefill"],
            }
        )
    return found


def shares(model: Model, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The memory's share of the time at the longest length, against window + sinks, and
    of FLOPs and bytes; see :mod:`flops`. Empty if window + sinks were not measured, or
    if there is no memory."""
    length = max(row["length"] for row in rows)
    at = {row["system"]: row for row in rows if row["length"] == length}
    if WINDOW not in at or model.memory_is_off:
        return {}
    of = flops.Sizes.of(model)
    reading, decoding = (
        flops.reading(of, length, block=of.config.chunk),
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
    """The table, the ratios and the shares of the memory."""
    head = ["tokens", "", "prefill tok/s", "decode tok/s", "peak GB", "state MB"]
    head += ["p50 ms", "p95", "p99", "max", "fold", "chunk"]
    cells = [
        [
            f"{row['length']:,}",
            row["system"],
            f"{row['prompt_tps']:.1f}",
            f"{row['generation_tps']:.1f}",
            f"{row['peak'] / 1e9:.3f}",
            f"{row['state'] / 1e6:.1f}",
            *("-" if x is None else f"{x:.1f}" for x in row["latency"].values()),
        ]
        for row in rows
    ]
    lines = [table(head, cells), ""]
    for row in found:
        for name, ratios in row["others"].items():
            values = ", ".join(f"{key} {value:.2f}" for key, value in ratios.items())
            lines.append(f"{row['length']:,} tokens, {name} / AllMem: {values}")
    for row in found:
        speed = row["decode speed beside the shortest"]
        line = f"{row['length']:,} tokens: decoding at {speed:.3f} of the speed after "
        line += "the shortest"
        if (double := row["prefill beside half the length"]) is not None:
            line += f", prefill {double:.2f} times that of half the length"
        lines.append(line)
    if share:
        lines.append(
            "The memory's share of: "
            + ", ".join(f"{name} {100 * value:.1f} %" for name, value in share.items())
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: str) -> None:
    """Draws speed and memory by length, and the time of each decoded token.

    Args:
        result (dict): what ``benchmark --json`` writes.
        path (str): the PNG for light pages; see :func:`draw`.
    """
    rows = result["best"]
    longest = max(row["length"] for row in rows)
    at = {row["system"]: row for row in rows if row["length"] == longest}
    names = [name for name in (ALLMEM, FULL, WINDOW) if name in at]

    def by_length(title: str, quantity: str, name: str, unit: float = 1) -> Panel:
        curves: dict[str, list[Point]] = {system: [] for system in names}
        for row in rows:
            curves[row["system"]].append((row["length"], row[name] / unit))
        return Panel(title, "tokens read", quantity, curves, from_zero=True)

    def ratio(name: str) -> float:
        return at[ALLMEM][name] / at[names[1]][name]

    titles = ["Reading", "Decoding", "Memory"]
    if len(names) > 1:
        titles = [
            f"Reads {_times(ratio('prompt_tps'))} as fast as {names[1]}",
            f"Decodes {_times(ratio('generation_tps'))} as fast",
            f"Needs {100 * ratio('peak'):.0f} % of the memory",
        ]
    chunk, latency = result["config"]["chunk"], at[ALLMEM]["latency"]
    by_token: dict[str, list[Point]] = {name: [] for name in names}
    for run in result["trials"][-1]:
        if run["length"] == longest:
            ms = [1000 * seconds for seconds in run["latencies"]]
            by_token[run["name"]] = list(enumerate(ms))
    by_token[FIRST] = [x for x in by_token[ALLMEM] if (longest + x[0]) % chunk == 0]
    title = f"Latency, chunk {chunk}"
    if latency[CHUNK] is not None:
        slower = _times(latency[CHUNK] / latency["p50"])
        title = f"One token in {chunk} takes {slower} the time"
    panels = [
        by_length(titles[0], "tokens/s", "prompt_tps"),
        by_length(titles[1], "tokens/s", "generation_tps"),
        by_length(titles[2], "peak memory, GB", "peak", 1e9),
        Panel(
            title,
            f"token after {longest:,}",
            "ms",
            by_token,
            x_log=False,
            from_zero=True,
            scattered=(FIRST,),
        ),
    ]
    draw(panels, result["title"], path)


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"
