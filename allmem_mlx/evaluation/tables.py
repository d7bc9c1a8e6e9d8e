"""The results of ``evaluate`` as tables."""

from collections.abc import Sequence
from typing import Any

from ..cli.report import table
from .columns import COLUMNS
from .intervals import Interval
from .lookups import SOURCES
from .systems import NAMES


def _interval(value: dict[str, Any]) -> str:
    return str(Interval(**value))


def _fraction(count: int | None, asked: int) -> str:
    return f"{count}/{asked}" if count is not None and asked else "-"


def likelihood(summary: dict[str, Any]) -> str:
    """The table of :func:`likelihood.summary`, and the shares of the gap."""

    def cells(row: dict[str, Any]) -> list[str]:
        values = (row["nll"][name] for name in NAMES)
        texts = ("-" if x is None else f"{x:.4f}" for x in values)
        return [f"{row['tokens']}", *texts]

    rows = [[f"{x['from']}-{x['to'] - 1}", *cells(x)] for x in summary["buckets"]]
    if within := summary["within window"]:
        rows.insert(0, [f"1-{summary['window'] - 1}", *cells(within)])
    rows.append([f">= {summary['window']}", *cells(summary["beyond window"])])
    first, last = summary["gap positions"]
    lines = [
        "Mean negative log-likelihood (nats per token) by position",
        table(["position", "tokens", *NAMES], rows),
        f"Gap recovered (positions {first}-{last - 1}): "
        + _interval(summary["gap recovered"]),
        "Gain over window + sinks (nats per token): " + _interval(summary["gain"]),
        "Share of the gain that vanishes: "
        + ", ".join(
            f"{name} {_interval(value)}"
            for name, value in summary["share of the gain that vanishes"].items()
        ),
        "Memory beats the matched window from position: "
        + str(summary["crossover"] or "none"),
    ]
    return "\n".join(lines)


def recall(summary: dict[str, Any]) -> str:
    """The table of :func:`recall.summary`: right answers of all answers."""
    rows = []
    for row in summary["rows"]:
        kind = row["kind"]
        if row["depth"] is not None:
            kind += f", depth {100 * row['depth']:.0f} %"
        counts = [_fraction(row["right"][name], row["asked"][name]) for name in NAMES]
        rows.append([kind, str(row["distance"]), *counts])
    head = ["question", "distance", *NAMES]
    return "Right answers, by distance in tokens\n" + table(head, rows)


def lookups(summary: dict[str, Any]) -> str:
    """The tables of :func:`lookup_summary.summary`: hits of the passages, then right
    and invented answers of all answers."""
    hits = [row for row in summary["rows"] if row["hits"]]
    title = "Hits: the passages with the answer, by source"
    parts = [_counts(title, hits, "hits", SOURCES)]
    if "sets" not in summary:
        return "".join(parts).rstrip()
    names = [column.name for column in COLUMNS]
    title = "Right answers, by distance in tokens"
    parts.append(_counts(title, hits, "right", names))
    others = [row for row in summary["rows"] if not row["hits"]]
    title = "Invented answers to questions that the text does not answer"
    parts.append(_counts(title, others, "invented", names))
    for name, found in summary["sets"].items():
        if "use" in found:
            use, ratio = (_interval(found[x]) for x in ("use", "of the oracle"))
            parts.append(
                f"{name}: AllMem + passages uses {use} of the hits, and is right "
                f"{ratio} times as often as the oracle\n"
            )
    counts = summary["claims"]
    parts.append(
        f"{counts['answers']} answers with passages: {counts['found']} of "
        f"{counts['claims']} claims are marked as found, {counts['violations']} of "
        "them wrongly"
    )
    return "".join(parts)


def _counts(
    title: str, rows: list[dict[str, Any]], counted: str, names: Sequence[str]
) -> str:
    """A table of one kind of count; empty if there are no rows."""
    cells = []
    for row in rows:
        asked = row["asked"] if counted != "hits" else {}
        counts = (
            _fraction(row[counted][name], asked.get(name, row["questions"]))
            for name in names
        )
        cells.append([row["set"], str(row["distance"] or "-"), *counts])
    head = ["set", "distance", *names]
    return f"{title}\n{table(head, cells)}\n" if rows else ""


def searched(summary: dict[str, Any]) -> str:
    """The size of the archive, and the time that searching takes."""
    book, spent = summary["haystack"], summary["ms per query"]
    indexing, before = book["seconds of indexing"], book["seconds of tokenising"]
    return (
        f"{book['tokens']} tokens, {book['passages']} passages, "
        f"{book['archive bytes'] / 1e6:.1f} MB of archive; indexing took "
        f"{indexing:.1f} s beyond {before:.1f} s of tokenising; a query takes "
        f"{spent['median']:.1f} ms, at most {spent['most']:.1f}"
    )


def suite(summary: dict[str, Any]) -> str:
    """The table of :func:`suites.run.summary`: mean scores in percent."""
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
