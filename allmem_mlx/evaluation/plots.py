"""The results of ``evaluate``, drawn."""

import math
from collections.abc import Sequence
from typing import Any

from ..cli.plots import Panel, Point, draw
from .columns import COLUMNS
from .lookups import FOUND, SOURCES
from .systems import ALLMEM, ALLMEM_PASSAGES, FULL, MATCHED, NEVER, OTHER, WINDOW

CONTROLS = (NEVER, OTHER, MATCHED)
ORDER = (ALLMEM, FULL, WINDOW, *CONTROLS)


def plot(result: dict[str, Any], path: str) -> None:
    """Draws curves by position or by distance.

    Args:
        result (dict): what ``evaluate --json`` writes of ``--text`` or ``--recall``.
        path (str): the PNG for light pages; see :func:`draw`.
    """
    sizes = result["allmem"]
    caption = ", ".join(
        f"{name} {sizes[name]}" for name in ("window", "sinks", "chunk")
    )
    panel = recall
    if result["measured"] == "likelihood":
        panel = likelihood
        caption += f", matched window {result['matched window']}"
    elif "passages" in result:
        panel = lookups
        caption += f", {result['passages']} passages"
    draw([panel(result)], caption, path)


def likelihood(summary: dict[str, Any]) -> Panel:
    """By position, how much lower the negative log-likelihood of each system is than
    that of window + sinks. A bucket stands at the geometric mean of its ends."""
    curves = {
        name: [
            (math.sqrt(row["from"] * row["to"]), row["nll"][WINDOW] - row["nll"][name])
            for row in summary["buckets"]
            if row["nll"][name] is not None and row["nll"][WINDOW] is not None
        ]
        for name in ORDER
    }
    title = "What the window loses, and AllMem recovers"
    if (share := summary["gap recovered"]["value"]) is not None:
        title = f"AllMem recovers {100 * share:.0f} % of what the window loses"
    gain = "gain over window + sinks, nats per token"
    return Panel(
        title, "position in the document, tokens", gain, curves, dashed=CONTROLS
    )


def recall(summary: dict[str, Any]) -> Panel:
    """By distance, the right answers of each system, of all tasks together."""
    rows = summary["rows"]
    right, asked = (sum(row[x][ALLMEM] for row in rows) for x in ("right", "asked"))
    other = sum(row["right"][WINDOW] for row in rows)
    title = f"AllMem answers {right} of {asked} right, window + sinks {other}"
    return _by_distance(title, rows, "right", ORDER, CONTROLS)


def lookups(summary: dict[str, Any]) -> Panel:
    """By distance, of all sets together, the right answers of each column; if nothing
    was asked, the hits of each source of passages."""
    rows = [row for row in summary["rows"] if row["distance"] and row["hits"]]
    if "sets" in summary:
        name = ALLMEM_PASSAGES
        right, asked = (sum(row[x][name] for row in rows) for x in ("right", "asked"))
        names = [column.name for column in COLUMNS]
        title = f"{name} answers {right} of {asked} right"
        return _by_distance(title, rows, "right", names, names[5:])
    rows = [row | {"asked": dict.fromkeys(SOURCES, row["questions"])} for row in rows]
    hits, asked = (sum(row[x][FOUND] for row in rows) for x in ("hits", "asked"))
    title = f"{hits} of {asked} lookups find the passage with the answer"
    return _by_distance(title, rows, "hits", SOURCES)


def _by_distance(
    title: str,
    rows: list[dict[str, Any]],
    counted: str,
    names: Sequence[str],
    dashed: Sequence[str] = (),
) -> Panel:
    """Percentages of those asked, by name, of all rows of a distance together."""
    curves: dict[str, list[Point]] = {name: [] for name in names}
    for distance in sorted({row["distance"] for row in rows}):
        here = [row for row in rows if row["distance"] == distance]
        for name in names:
            if asked := sum(row["asked"][name] for row in here):
                share = sum(row[counted][name] for row in here) / asked
                curves[name].append((distance, 100 * share))
    quantity = "hits, %" if counted == "hits" else "right answers, %"
    across, dashed = "distance, tokens", tuple(dashed)
    return Panel(title, across, quantity, curves, from_zero=True, dashed=dashed)
