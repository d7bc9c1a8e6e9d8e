"""How fast models read and decode, and what memory they need, side by side.

All share their weights, run in one process and take turns: a stretch of a few thousand
tokens while reading, a token while decoding. What else the machine does then falls on
all alike, and the ratios stay.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ..evaluation.systems import ALLMEM, FULL, WINDOW
from ..model import Model
from ..streaming import reading
from ..variants import base_model, window_model

STRETCH = 2048  # tokens that one reads before the next one's turn; mlx-lm's own step
CHUNK, FOLD, PLAIN = "chunk", "fold", "plain"  # what a decoded token has to do


@dataclass
class Runner:
    """A model that is measured, and what it has read.

    Args:
        name (str): of what is compared.
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
        """Forgets everything."""
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
        """A state that can be decoded from, see :meth:`restore`."""
        if hasattr(self.cache[0], "fork"):
            return [layer.fork() for layer in self.cache]
        return self.cache

    def restore(self, tokens: int) -> None:
        """Goes back by tokens that were decoded."""
        if not hasattr(self.cache[0], "fork"):
            trim_prompt_cache(self.cache, tokens)


@dataclass(frozen=True)
class Measured:
    """What was measured of a model at a length.

    Args:
        name (str): of the model.
        length (int): tokens read.
        prefill (float): seconds it took to read them.
        latencies (list): seconds of each decoded token.
        peak (int): most bytes that were allocated at once, weights included.
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
    """The model, and what it is compared with.

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


def _isolated_peak(runner: Runner, others: list[Runner], function: Any) -> Any:
    """Runs a function; the states of others that wait do not count for the peak."""
    mx.reset_peak_memory()
    result = function()
    waiting = sum(other.nbytes for other in others if other is not runner)
    runner.peak = max(runner.peak, mx.get_peak_memory() - waiting)
    return result


def measure(
    runners: list[Runner], tokens: list[int], lengths: Sequence[int], decoded: int
) -> Iterator[Measured]:
    """Reads tokens once, and decodes after each length; the reading then goes on as if
    nothing had been decoded. What was measured at a length comes before it goes on.

    Args:
        runners (list): the models.
        tokens (list): ids, at least as many as the largest length.
        lengths (list): tokens after which to decode, ascending.
        decoded (int): tokens to decode, greedily.
    """
    for runner in runners:
        runner.start()
    read = 0
    for length in lengths:
        while read < length:
            part = tokens[read : min(read + STRETCH, length)]
            for runner in runners:
                _isolated_peak(runner, runners, lambda r=runner, p=part: r.read(p))
            read += len(part)
        latencies = _decode(runners, tokens[length - 1], decoded)
        for runner in runners:
            yield Measured(
                runner.name,
                length,
                runner.seconds,
                latencies[runner.name],
                runner.peak,
                runner.nbytes,
            )


def _decode(runners: list[Runner], token: int, decoded: int) -> dict[str, list[float]]:
    """Seconds of each token, by name. A token is evaluated as mlx-lm does it: what the
    next one does not need yet waits."""
    forks = {runner.name: runner.fork() for runner in runners}
    last = {runner.name: mx.array([[token]]) for runner in runners}
    latencies: dict[str, list[float]] = {runner.name: [] for runner in runners}

    def step(runner: Runner) -> None:
        start = time.perf_counter()
        logits = runner.model(last[runner.name], cache=forks[runner.name])
        last[runner.name] = logits[:, -1:].argmax(-1)
        mx.eval(last[runner.name])
        latencies[runner.name].append(time.perf_counter() - start)

    for _ in range(decoded):
        for runner in runners:
            _isolated_peak(runner, runners, lambda r=runner: step(r))
    for runner in runners:
        runner.restore(decoded)
    return latencies


def kinds(model: Model, length: int, count: int) -> list[str]:
    """What each of ``count`` tokens after ``length`` has to do first: at the beginning
    of a chunk, or of a block that is folded, what the one before it left is due."""
    c = model.allmem
    return [
        CHUNK if i % c.chunk == 0 else FOLD if i % c.fold == 0 else PLAIN
        for i in range(length, length + count)
    ]


def latency(seconds: Sequence[float], kinds: Sequence[str]) -> dict[str, float | None]:
    """Percentiles and maximum of all tokens, and medians of those of a kind, in ms."""
    ms = 1000 * np.asarray(seconds)
    found: dict[str, float | None] = {
        f"p{q}": float(np.percentile(ms, q)) for q in (50, 95, 99)
    }
    found["max"] = float(ms.max())
    for kind in (FOLD, CHUNK):
        own = ms[[k == kind for k in kinds]]
        found[kind] = float(np.median(own)) if len(own) else None
    return found
