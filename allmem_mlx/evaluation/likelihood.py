"""Negative log-likelihood by position, and the share of the gap that is closed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model import Model
from .intervals import Interval, ratio
from .systems import (
    ALLMEM,
    FULL,
    MATCHED,
    NEVER,
    OTHER,
    WINDOW,
    Reader,
    System,
    blocks,
)

Losses = dict[str, list[np.ndarray]]


def losses(
    system: System,
    model: Model,
    tokens: Sequence[int],
    other: Sequence[int] = (),
    progress: Callable[[int], Any] = lambda tokens: None,
) -> np.ndarray:
    """``-log p(token | all before it)`` in nats, of one document read from its start.

    Args:
        system (System): the model that reads.
        model (Model): the hybrid.
        tokens (list): the document.
        other (list): the document whose memory a system borrows.
        progress: called with the tokens of each block.

    Returns:
        np.ndarray: float64, one for each token that the system can read. The first is
        NaN: nothing comes before it.
    """
    tokens = list(tokens[: system.limit])
    reader = Reader(system, model, other)
    found = [np.array([np.nan])]
    start = 0
    for block in blocks(tokens, model):
        logits = reader.step(block).astype(mx.float32)
        targets = mx.array(tokens[start + 1 : start + len(block) + 1])
        logits = logits[: targets.size]  # the last token has no next one
        if targets.size:
            block_losses: Any = nn.losses.cross_entropy(logits, targets)
            found.append(np.array(block_losses, dtype=np.float64))
        del logits
        mx.clear_cache()
        start += len(block)
        progress(len(block))
    return np.concatenate(found)


def buckets(window: int, longest: int) -> list[tuple[int, int]]:
    """``[W, 2W), [2W, 4W), ...`` up to the end of the longest document."""
    edges = [window]
    while edges[-1] < longest:
        edges.append(min(2 * edges[-1], longest))
    return list(zip(edges, edges[1:], strict=False))


def summary(found: Losses, window: int, seed: int = 0) -> dict[str, Any]:
    """The losses of all systems by position, and the shares of the gap.

    Means are over tokens, pooled over documents. A system that has not read all tokens
    of a bucket has no mean there. The gap is measured over the positions that all
    systems have read, everything else over all positions beyond the window.

    Args:
        found (dict): for each system its :func:`losses` of each document.
        window (int): W; only tokens at positions >= W count. Those before have a row
            of their own, for the cost of the memory where none is needed.
        seed (int): of the bootstrap.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    lengths = [len(x) for x in found[ALLMEM]]
    known = [len(x) for x in found[FULL]]
    longest = max(lengths)
    edges = buckets(window, longest)

    def share(
        part: tuple[str, str], whole: tuple[str, str], ends: Sequence[int]
    ) -> Any:
        over, under = (_excess(found, *pair, window, ends) for pair in (part, whole))
        return asdict(ratio(over, under, seed))

    gained = WINDOW, ALLMEM
    gain = _excess(found, *gained, window, lengths)
    return {
        "window": window,
        "within window": _row(found, 1, window) if window > 1 else None,
        "buckets": [
            {"from": first, "to": end, **_row(found, first, end)}
            for first, end in edges
        ],
        "beyond window": _row(found, window, longest),
        "gap positions": [window, min(max(known), longest)],
        "gap recovered": share(gained, (WINDOW, FULL), known),
        "gain": asdict(ratio(gain, np.array(lengths) - window, seed)),
        "share of the gain that vanishes": {
            name: share((name, ALLMEM), gained, lengths)
            for name in (NEVER, OTHER, MATCHED)
        },
        "documents": [
            {"nll": {name: _mean(x[i], window, n) for name, x in found.items()}}
            for i, n in enumerate(lengths)
        ],
        "crossover": _crossover(found, edges, seed),
    }


def _sums(losses: list[np.ndarray], first: int, ends: Sequence[int]) -> np.ndarray:
    """Sums over positions ``first`` up to an end, one for each document."""
    return np.array([x[first:end].sum() for x, end in zip(losses, ends, strict=True)])


def _excess(
    found: Losses, name: str, other: str, first: int, ends: Sequence[int]
) -> np.ndarray:
    """The loss of a system above that of another one, for each document."""
    return _sums(found[name], first, ends) - _sums(found[other], first, ends)


def _row(found: Losses, first: int, end: int) -> dict[str, Any]:
    """Tokens and mean losses of the positions ``first`` to ``end``."""
    ends = [min(len(x), end) for x in found[ALLMEM]]
    tokens = int(np.maximum(0, np.array(ends) - first).sum())
    means: dict[str, float | None] = {}
    for name, losses in found.items():
        complete = all(len(x) >= stop for x, stop in zip(losses, ends, strict=True))
        mean = float(_sums(losses, first, ends).sum() / tokens)
        means[name] = mean if complete and np.isfinite(mean) else None
    return {"tokens": tokens, "nll": means}


def _mean(losses: np.ndarray, first: int, length: int) -> float | None:
    """The mean loss of a document; ``None`` if a system has not read all of it."""
    mean = float(losses[first:].mean()) if len(losses) == length else np.nan
    return mean if np.isfinite(mean) else None


def _crossover(found: Losses, edges: list[tuple[int, int]], seed: int) -> int | None:
    """The first bucket from which on the memory beats the matched window in every
    bucket, and beyond which its lead is more than noise over documents."""
    crossover = None
    for first, end in reversed(edges):
        here, beyond = (_lead(found, first, x, seed) for x in (end, edges[-1][1]))
        if here.value is None or here.value <= 0:
            break
        if beyond.low is not None and beyond.low > 0:
            crossover = first
    return crossover


def _lead(found: Losses, first: int, end: int, seed: int) -> Interval:
    """The mean loss of the matched window above AllMem's, in nats."""
    ends = [min(len(x), end) for x in found[ALLMEM]]
    counts = np.maximum(0, np.array(ends) - first)
    lead = _excess(found, MATCHED, ALLMEM, first, ends)
    reached = counts > 0
    return ratio(lead[reached], counts[reached], seed)
