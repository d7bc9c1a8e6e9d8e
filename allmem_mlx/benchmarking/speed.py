"""Speed of reading and decoding, and memory, of several models side by side.

They share their weights, run in one process and take turns: a stretch of a few thousand
tokens while reading, a token while decoding. Background load affects all alike, and
the ratios stand.
"""

import copy
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import (
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from ..cache import attention_caches, fork
from ..evaluation.systems import ALLMEM, FULL, WINDOW
from ..model import Model
from ..streaming import reading
from ..variants import base_model, window_model

STRETCH = 2048  # tokens of a turn; mlx-lm's own step
CHUNK, FOLD, PLAIN = "chunk", "fold", "plain"  # the work of a decoded token


@dataclass
class Runner:
    """A model that is measured, and its state.

    Args:
        name (str): of the system.
        model (nn.Module): any mlx-lm model.
        step (int): tokens that it reads at once.
    """

    name: str
    model: Any
    step: int
    cache: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0

    def start(self) -> None:
        """Starts from an empty state."""
        self.cache = make_prompt_cache(self.model)
        self.seconds, self.peak = 0.0, 0

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(c.nbytes for c in self.cache)

    def read(self, tokens: list[int]) -> None:
        """Reads more tokens."""
        start = time.perf_counter()
        with reading(self.model) as read:
            for i in range(0, len(tokens), self.step):
                read(tokens[i : i + self.step], self.cache)
        self.seconds += time.perf_counter() - start

    def fork(self) -> list[Any]:
        """A state to decode from; see :meth:`restore`."""
        if attention_caches(self.cache):
            return fork(self.cache)
        if can_trim_prompt_cache(self.cache):
            return self.cache
        return copy.deepcopy(self.cache)

    def restore(self, tokens: int) -> None:
        """Undoes the decoding of some tokens."""
        if can_trim_prompt_cache(self.cache):
            trim_prompt_cache(self.cache, tokens)


@dataclass(frozen=True)
class Measured:
    """The measurements of a model at a length.

    Args:
        name (str): of the model.
        length (int): tokens read.
        prefill (float): seconds to read them.
        latencies (list): seconds of each decoded token.
        peak (int): peak memory in bytes, weights included.
        state (int): bytes of the state.
    """

    name: str
    length: int
    prefill: float
    latencies: list[float]
    peak: int
    state: int

    @property
    def prompt_tps(self) -> float:
        return self.length / self.prefill

    @property
    def generation_tps(self) -> float:
        return len(self.latencies) / sum(self.latencies)


def runners(model: Model, beside: Collection[str] = ("window", "full")) -> list[Runner]:
    """The model and its comparisons.

    Args:
        model (Model): a hybrid.
        beside (Collection): ``"window"``, the same without its memory, and ``"full"``,
            the base with full attention.
    """
    found = [Runner(ALLMEM, model, model.allmem.block)]
    if "window" in beside:
        other = window_model(model, model.allmem.window)
        found.append(Runner(WINDOW, other, model.allmem.block))
    if "full" in beside:
        found.append(Runner(FULL, base_model(model), STRETCH))
    return found


@contextmanager
def _own_peak(runner: Runner, runners: list[Runner]) -> Iterator[None]:
    """Notes the peak memory of a runner, without the states of the others."""
    mx.reset_peak_memory()
    yield
    waiting = sum(other.nbytes for other in runners if other is not runner)
    runner.peak = max(runner.peak, mx.get_peak_memory() - waiting)


def measure(
    runners: list[Runner], tokens: list[int], lengths: Sequence[int], count: int
) -> Iterator[Measured]:
    """Reads tokens once, and decodes after each length; the reading then continues as
    if nothing had been decoded.

    Args:
        runners (list): the models.
        tokens (list): ids, at least as many as the largest length.
        lengths (list): tokens after which to decode, ascending.
        count (int): tokens to decode, greedily.

    Yields:
        Measured: of each model, once it has reached a length.
    """
    for runner in runners:
        runner.start()
    for start, length in zip([0, *lengths], lengths, strict=False):
        for i in range(start, length, STRETCH):
            for runner in runners:
                with _own_peak(runner, runners):
                    runner.read(tokens[i : min(i + STRETCH, length)])
        latencies = _decode(runners, tokens[length - 1], count)
        for x, times in zip(runners, latencies, strict=True):
            yield Measured(x.name, length, x.seconds, times, x.peak, x.nbytes)


def _decode(runners: list[Runner], token: int, count: int) -> list[list[float]]:
    """Seconds of each token, by runner. A token is evaluated as in mlx-lm: work that
    the next one does not depend on may wait."""
    forks = [runner.fork() for runner in runners]
    last = [mx.array([[token]])] * len(runners)
    latencies: list[list[float]] = [[] for _ in runners]
    for _ in range(count):
        for i, runner in enumerate(runners):
            with _own_peak(runner, runners):
                start = time.perf_counter()
                logits = runner.model(last[i], cache=forks[i])
                last[i] = logits[:, -1:].argmax(-1)
                mx.eval(last[i])
                latencies[i].append(time.perf_counter() - start)
    for runner in runners:
        runner.restore(count)
    return latencies


def kinds(model: Model, length: int, count: int) -> list[str]:
    """The work of each of ``count`` tokens after ``length``: the first one of a chunk
    or a fold also does what the previous chunk or fold left to do."""
    c = model.allmem
    return [
        CHUNK if i % c.chunk == 0 else FOLD if i % c.fold == 0 else PLAIN
        for i in range(length, length + count)
    ]


def latency(seconds: Sequence[float], kinds: Sequence[str]) -> dict[str, float | None]:
    """Percentiles and maximum of all tokens, and medians by kind, in ms."""
    ms = 1000 * np.asarray(seconds)
    found: dict[str, float | None] = {
        f"p{q}": float(np.percentile(ms, q)) for q in (50, 95, 99)
    }
    found["max"] = float(ms.max())
    for kind in (FOLD, CHUNK):
        of_kind = ms[[x == kind for x in kinds]]
        found[kind] = float(np.median(of_kind)) if len(of_kind) else None
    return found
