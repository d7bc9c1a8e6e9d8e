"""Negative log-likelihood by position, and what share of the gap the memory closes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx
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
        system (System): what reads.
        model (Model): the hybrid.
        tokens (list): the document.
        other (list): the document whose memory a system borrows.
        progress: called with the tokens of each block.

    Returns:
        np.ndarray: float64, one for each token. The first is NaN: nothing comes before
        it. No longer than what the system can read.
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
            chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            block_losses: Any = mx.logsumexp(logits, axis=-1) - chosen
            found.append(np.array(block_losses, dtype=np.float64))
        del logits
        mx.clear_cache()
        start += len(block)
        progress(len(block))
    return np.concatenate(found)


def _sums(losses: list[np.ndarray], first: int, ends: Sequence[int]) -> np.ndarray:
    """Sums over positions ``first`` up to an end, one for each document."""
    return np.array([x[first:end].sum() for x, end in zip(losses, ends, strict=True)])


def _mean(losses: np.ndarray, first: int, length: int) -> float | None:
    mean = float(losses[first:].mean()) if len(losses) == length else None
    return mean if mean is not None and np.isfinite(mean) else None


def buckets(window: int, longest: int) -> list[tuple[int, int]]:
    """``[W, 2W), [2W, 4W), ...`` up to the end of the longest document."""
    edges = [window]
    while edges[-1] < longest:
        edges.append(min(2 * edges[-1], longest))
    return list(zip(edges, edges[1:], strict=False))


def summary(found: Losses, window: int, seed: int = 0) -> dict[str, Any]:
    """What is printed of the losses of all systems.

    Means are over tokens, pooled over documents. A system that has not read all tokens
    of a bucket has no mean there. The gap is measured over the positions that all
    systems have read, everything else over all positions beyond the window.

    Args:
        found (dict): for each system its :func:`losses` of each document.
        window (int): W; only tokens at positions >= W count, and those before have a
            row of their own: text that needs no memory should not suffer from one.
        seed (int): of the bootstrap.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    lengths = [len(x) for x in found[ALLMEM]]
    known = [len(x) for x in found[FULL]]

    def row(first: int, last: int) -> dict[str, Any]:
        ends = [min(length, last) for length in lengths]
        counts = np.maximum(0, np.array(ends) - first)
        means: dict[str, float | None] = {}
        for name, arrays in found.items():
            read = all(len(x) >= end for x, end in zip(arrays, ends, strict=True))
            mean = float(_sums(arrays, first, ends).sum() / counts.sum())
            means[name] = mean if read and np.isfinite(mean) else None
        return {"tokens": int(counts.sum()), "nll": means}

    def difference(name: str, less: str, first: int, ends: Sequence[int]) -> np.ndarray:
        return _sums(found[name], first, ends) - _sums(found[less], first, ends)

    counts = np.array(lengths) - window
    gain = difference(WINDOW, ALLMEM, window, lengths)
    edges = buckets(window, max(lengths))
    # A document that a system has not read whole has no mean.
    documents = [
        {name: _mean(x[i], window, length) for name, x in found.items()}
        for i, length in enumerate(lengths)
    ]
    return {
        "window": window,
        "within window": row(1, window) if window > 1 else None,
        "buckets": [
            {"from": first, "to": last, **row(first, last)} for first, last in edges
        ],
        "beyond window": row(window, max(lengths)),
        "gap positions": [window, min(max(known), max(lengths))],
        "gap recovered": asdict(
            ratio(
                difference(WINDOW, ALLMEM, window, known),
                difference(WINDOW, FULL, window, known),
                seed,
            )
        ),
        "gain": asdict(ratio(gain, counts, seed)),
        "share of the gain that vanishes": {
            name: asdict(ratio(difference(name, ALLMEM, window, lengths), gain, seed))
            for name in (NEVER, OTHER, MATCHED)
        },
        "documents": [{"nll": means} for means in documents],
        "crossover": _crossover(found, lengths, [first for first, _ in edges], seed),
    }


def _crossover(
    found: Losses, lengths: Sequence[int], starts: list[int], seed: int
) -> int | None:
    """The first bucket from which on the memory beats the matched window in every
    bucket, and beyond which its lead is more than noise over documents."""
    crossover = None
    for i in reversed(range(len(starts))):
        last = starts[i + 1] if i + 1 < len(starts) else max(lengths)
        here = _lead(found, starts[i], [min(x, last) for x in lengths], seed)
        beyond = _lead(found, starts[i], lengths, seed)
        if here.value is None or here.value <= 0:
            break
        if beyond.low is not None and beyond.low > 0:
            crossover = starts[i]
    return crossover


def _lead(found: Losses, first: int, ends: Sequence[int], seed: int) -> Interval:
    """How much less AllMem's mean loss is than the matched window's, in nats."""
    counts = np.maximum(0, np.array(ends) - first)
    lead = _sums(found[MATCHED], first, ends) - _sums(found[ALLMEM], first, ends)
    reached = counts > 0
    return ratio(lead[reached], counts[reached], seed)
