"""Results as tables, JSON and curves."""

import io
import json
import math
from collections.abc import Sequence
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
    return panels([(y, curves)], x, title)


def panels(
    drawn: list[tuple[str, dict[str, list[tuple[float, float]]]]],
    x: str,
    title: str,
    scale: str = "linear",
) -> bytes:
    """A PNG of curves side by side, over a logarithmic axis; no display is needed.

    Args:
        drawn (list): for each panel what is up, with its unit, and points by name;
            names without any are left out.
        x (str): what is across, with its unit.
        title (str): what was measured.
        scale (str): of what is up, matplotlib's name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8 if len(drawn) == 1 else 13, 5), layout="constrained")
    figure.suptitle(title)
    for axes, (y, curves) in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True
    ):
        for name, points in curves.items():
            if points:
                style = "-" if name in (FULL, WINDOW, ALLMEM) else "--"
                axes.plot(*zip(*points, strict=True), style, marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale(scale)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
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
