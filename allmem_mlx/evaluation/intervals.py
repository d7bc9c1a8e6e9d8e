"""Ratios of sums over documents, with bootstrap confidence intervals."""

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval; ``None`` if they are not defined.

    Args:
        value (float): the value over all documents.
        low, high (float): the ends of the interval.
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [n/a]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(over: np.ndarray, under: np.ndarray, seed: int) -> Interval:
    """``sum(over) / sum(under)`` with a 95 % percentile bootstrap interval.

    Documents are drawn with replacement, 10,000 times. There is no value if the
    denominator is not positive, and no interval if that is so in more than one draw in
    a thousand, or for a single document.

    Args:
        over, under (np.ndarray): a number for each document.
        seed (int): of the draws; the same seed draws the same documents.
    """
    top, bottom = float(np.sum(over)), float(np.sum(under))
    if not (math.isfinite(top) and math.isfinite(bottom) and bottom > 0):
        return Interval(None, None, None)
    if len(over) < 2:
        return Interval(top / bottom, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(over), (DRAWS, len(over)))
    tops, bottoms = over[drawn].sum(1), under[drawn].sum(1)
    sound = bottoms > 0
    if sound.mean() < 0.999:
        return Interval(top / bottom, None, None)
    low, high = np.quantile(
        tops[sound] / bottoms[sound], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    )
    return Interval(top / bottom, float(low), float(high))
