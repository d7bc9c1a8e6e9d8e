"""What was measured, as tables and curves."""

import math
from typing import Any

from ..output import Panel, table
from .intervals import Interval
from .systems import MATCHED, NAMES, NEVER, OTHER

CONTROLS = (NEVER, OTHER, MATCHED)  # dashed


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def likelihood(summary: dict[str, Any]) -> str:
    """The table of :func:`likelihood.summary`, and what follows from it."""

    def cells(row: dict[str, Any]) -> list[str]:
        return [f"{row['tokens']}", *(_number(row["nll"][name]) for name in NAMES)]

    def interval(value: dict[str, Any]) -> str:
        return str(Interval(**value))

    rows = [[f"{x['from']}-{x['to'] - 1}", *cells(x)] for x in summary["buckets"]]
    if within := summary["within window"]:
        rows.insert(0, [f"1-{summary['window'] - 1}", *cells(within)])
    rows.append([f">= {summary['window']}", *cells(summary["beyond window"])])
    first, last = summary["gap positions"]
    lines = [
        "Mean negative log-likelihood (nats per token) by position",
        table(["position", "tokens", *NAMES], rows),
        f"Gap recovered (positions {first}-{last - 1}): "
        + interval(summary["gap recovered"]),
        "Gain over window + sinks (nats per token): " + interval(summary["gain"]),
        "Share of the gain that vanishes: "
        + ", ".join(
            f"{name} {interval(value)}"
            for name, value in summary["share of the gain that vanishes"].items()
        ),
        "Memory beats the matched window from position: "
        + str(summary["crossover"] or "none"),
    ]
    return "\n".join(lines)


def recall(summary: dict[str, Any]) -> str:
    """The table of :func:`recall.summary`: right answers of those asked for."""
    rows = []
    for row in summary["rows"]:
        what = row["kind"]
        if row["depth"] is not None:
            what += f", depth {100 * row['depth']:.0f} %"
        counts = [
            f"{row['right'][name]}/{row['asked'][name]}" if row["asked"][name] else "-"
            for name in NAMES
        ]
        rows.append([what, str(row["distance"]), *counts])
    head = ["what", "distance", *NAMES]
    return "Right answers, by distance in tokens\n" + table(head, rows)


def suite(summary: dict[str, Any]) -> str:
    """The table of :func:`run.summary`: mean scores in percent."""
    rows = [
        [
            row["subset"],
            str(row["examples"]),
            *(
                f"{row['score'][name]['value']:.2f}" + ("*" if row["cut"][name] else "")
                for name in NAMES
            ),
        ]
        for row in summary["rows"]
    ]
    text = "Mean score (%)\n" + table(["subset", "examples", *NAMES], rows)
    if any(any(row["cut"].values()) for row in summary["rows"]):
        text += "\n* with prompts that were cut in the middle"
    return text


def likelihood_panel(summary: dict[str, Any]) -> Panel:
    """A curve for each system: the middle of a bucket, its mean."""
    curves: dict[str, list[tuple[float, float]]] = {
        name: [
            (math.sqrt(row["from"] * row["to"]), row["nll"][name])
            for row in summary["buckets"]
            if row["nll"][name] is not None
        ]
        for name in NAMES
    }
    across, up = "position in the document (tokens)", "NLL (nats per token)"
    return Panel(across, up, curves, dashed=CONTROLS)


def recall_panel(summary: dict[str, Any]) -> Panel:
    """A curve for each system: a distance, right answers there in percent, of all tasks
    together."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for distance in sorted({row["distance"] for row in summary["rows"]}):
        rows = [row for row in summary["rows"] if row["distance"] == distance]
        for name in NAMES:
            asked = sum(row["asked"][name] for row in rows)
            right = sum(row["right"][name] for row in rows)
            if asked:
                curves[name].append((distance, 100 * right / asked))
    return Panel("distance (tokens)", "right answers (%)", curves, dashed=CONTROLS)
