"""Results as tables, JSON and curves."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AllMemError
from .intervals import Interval
from .systems import ALLMEM, FULL, NAMES, WINDOW


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first stands left, the others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


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


def likelihood_curves(summary: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Points of a curve for each system: the middle of a bucket, its mean."""
    return {
        name: [
            (math.sqrt(row["from"] * row["to"]), row["nll"][name])
            for row in summary["buckets"]
            if row["nll"][name] is not None
        ]
        for name in NAMES
    }


def recall_curves(summary: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Points of a curve for each system: a distance, right answers there in percent,
    of all tasks together."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for distance in sorted({row["distance"] for row in summary["rows"]}):
        rows = [row for row in summary["rows"] if row["distance"] == distance]
        for name in NAMES:
            asked = sum(row["asked"][name] for row in rows)
            right = sum(row["right"][name] for row in rows)
            if asked:
                curves[name].append((distance, 100 * right / asked))
    return curves


def check_plotting() -> None:
    """
    Raises:
        AllMemError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise AllMemError(
            "--plot needs matplotlib: pip install 'allmem-mlx[plot]'"
        ) from None


def plot(
    curves: dict[str, list[tuple[float, float]]], x: str, y: str, title: str
) -> bytes:
    """A PNG of curves; see :func:`panels`."""
    return panels([Panel(x, y, curves)], title)


@dataclass(frozen=True)
class Panel:
    """One of several pictures side by side.

    Args:
        x, y (str): what is across and up, with their units.
        curves (dict): points by name; names without any are left out.
        x_log, y_log (bool): whether an axis is logarithmic.
    """

    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]]
    x_log: bool = True
    y_log: bool = False


def panels(drawn: list[Panel], title: str) -> bytes:
    """A PNG of curves side by side; no display is needed.

    Args:
        drawn (list): from left to right.
        title (str): what was measured.
    """
    from matplotlib.figure import Figure

    width = 8 if len(drawn) == 1 else 6.5 * len(drawn)
    figure = Figure(figsize=(width, 5), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True
    ):
        for name, points in panel.curves.items():
            if points:
                style = "-" if name.startswith((FULL, WINDOW, ALLMEM)) else "--"
                marker = "o" if len(points) < 50 else None
                axes.plot(*zip(*points, strict=True), style, marker=marker, label=name)
        if panel.x_log:
            axes.set_xscale("log", base=2)
        if panel.y_log:
            axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def write(path: str | Path, content: bytes) -> None:
    """
    Raises:
        AllMemError: if the file cannot be written.
    """
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise AllMemError(
            f"{str(path)!r} cannot be written ({error.strerror}); choose another file"
        ) from None


def as_json(result: dict[str, Any]) -> bytes:
    """UTF-8 JSON without NaN."""
    text = json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False)
    return text.encode() + b"\n"
