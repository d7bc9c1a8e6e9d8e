"""What was measured, as tables and curves."""

import math
from typing import Any

from ..cli.report import Panel, table
from .columns import COLUMNS
from .intervals import Interval
from .lookups import SOURCES
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


def lookups(summary: dict[str, Any]) -> str:
    """The tables of :func:`lookup_summary.summary`: hits of the passages, then right
    answers, and invented ones, of those asked for."""
    names = [column.name for column in COLUMNS]
    parts = []

    def add(title: str, counted: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        cells = []
        for row in rows:
            asked = row["asked"] if counted != "hits" else {}
            total, what = row["questions"], row[counted]
            cells.append(
                [
                    row["set"],
                    str(row["distance"] or "-"),
                    *(
                        f"{count}/{asked.get(name, total)}"
                        if count is not None and asked.get(name, total)
                        else "-"
                        for name, count in what.items()
                    ),
                ]
            )
        columns = SOURCES if counted == "hits" else names
        parts.append(f"{title}\n{table(['set', 'distance', *columns], cells)}")

    known = [row for row in summary["rows"] if row["hits"]]
    add("Hits: what answers is in the passages, by where they are from", "hits", known)
    if "sets" not in summary:
        return "\n".join(parts)
    add("Right answers, by distance in tokens", "right", known)
    unknown = [row for row in summary["rows"] if not row["hits"]]
    add("Invented answers to what the text does not tell", "invented", unknown)
    for name, found in summary["sets"].items():
        if "use" in found:
            use, near = (Interval(**found[x]) for x in ("use", "of the oracle"))
            parts.append(
                f"{name}: AllMem + passages uses {use} of the hits, and is right "
                f"{near} times as often as the oracle"
            )
    counts = summary["claims"]
    parts.append(
        f"{counts['answers']} answers with passages: {counts['found']} of "
        f"{counts['claims']} claims are marked as found, {counts['violations']} of "
        "them wrongly"
    )
    return "\n".join(parts)


def searched(summary: dict[str, Any]) -> str:
    """What searching took."""
    book, spent = summary["haystack"], summary["ms per query"]
    indexing, before = book["seconds of indexing"], book["seconds of tokenising"]
    return (
        f"{book['tokens']} tokens, {book['passages']} passages, "
        f"{book['archive bytes'] / 1e6:.1f} MB of archive; indexing took "
        f"{indexing:.1f} s beyond {before:.1f} s of tokenising; a query takes "
        f"{spent['median']:.1f} ms, at most {spent['most']:.1f}"
    )


def lookup_panel(summary: dict[str, Any]) -> Panel:
    """A curve for each column, or if nothing was asked for each kind of passages: a
    distance, right answers or hits there in percent, of all sets together."""
    rows = [row for row in summary["rows"] if row["distance"] and row["hits"]]
    counted = "right" if "sets" in summary else "hits"
    names = [x.name for x in COLUMNS] if counted == "right" else list(SOURCES)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for distance in sorted({row["distance"] for row in rows}):
        here = [row for row in rows if row["distance"] == distance]
        for name in names:
            asked = sum(
                row.get("asked", {}).get(name, row["questions"]) for row in here
            )
            if asked:
                share = sum(row[counted][name] for row in here) / asked
                curves[name].append((distance, 100 * share))
    what = "right answers (%)" if counted == "right" else "hits (%)"
    return Panel("distance (tokens)", what, curves, dashed=tuple(names[5:]))


def suite(summary: dict[str, Any]) -> str:
    """The table of :func:`run.summary`: mean scores in percent."""
    names = list(summary["rows"][0]["score"])
    rows = [
        [
            row["subset"],
            str(row["examples"]),
            *(
                f"{row['score'][name]['value']:.2f}" + ("*" if row["cut"][name] else "")
                for name in names
            ),
        ]
        for row in summary["rows"]
    ]
    text = "Mean score (%)\n" + table(["subset", "examples", *names], rows)
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
