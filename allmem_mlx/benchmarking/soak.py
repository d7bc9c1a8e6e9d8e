"""A long reading, watched: what should stay within bounds, by position."""

import copy
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..cli.report import Panel, panels, table
from ..evaluation.systems import blocks
from ..hooks import Tap
from ..memory.fast_weights import FastWeights, row_norms
from ..memory.kernels import Operations
from ..memory.layer import Memory, MemoryState
from ..model import Model

MARKS = 20  # lines of a log
LOOKED_AT = 4  # every so many blocks one is looked at closely
EDITED = 0.02  # share of tokens that are replaced when a text comes again


@dataclass(frozen=True)
class Mark:
    """What was seen since the mark before.

    Args:
        position (int): tokens read in all.
        nll (float): mean negative log-likelihood of the tokens looked at, in nats.
        row (float): largest norm of a row of W, as a multiple of its initial norm.
        momentum (float): largest ``||M||_F`` of a matrix.
        update (float): largest ``||W' - W||_F`` of a matrix from one chunk to the next.
        activation (float): largest ``|x|`` of the residual stream before the last norm.
        finite (bool): whether all of this is a number.
        turned (int): largest position that RoPE was given.
        peak (int): most bytes that were allocated at once.
        tps (float): tokens read per second.
    """

    position: int
    nll: float
    row: float
    momentum: float
    update: float
    activation: float
    finite: bool
    turned: int
    peak: int
    tps: float


class WatchedMemory(Memory):
    """A memory that notes its states before and after each write."""

    def learn(
        self, ops: Operations, state: MemoryState, rows: mx.array, token: int
    ) -> MemoryState:
        """See :class:`Memory`."""
        after = super().learn(ops, state, rows, token)
        if (token + rows.shape[2]) % self.config.chunk == 0:
            self._writes.append((state, after))
        return after


class Watched:
    """A model that notes its residual stream, the writes of its memories and the
    positions it rotates.

    Args:
        model (Model): the hybrid; it is not changed.
    """

    def __init__(self, model: Model):
        self.stream, self.turned = mx.array(0.0), 0
        # Of each memory: the row norms of W0, and its last writes.
        self.memories: list[tuple[FastWeights, list[tuple[MemoryState, ...]]]] = []
        self.model = copy.copy(model)
        self.model.model = body = copy.copy(model.model)
        name = "norm" if "norm" in body else "final_layernorm"
        setattr(body, name, Tap(body[name], self._note_stream))
        body.layers = [copy.copy(layer) for layer in model.layers]
        for layer in body.layers:
            layer.self_attn = attention = copy.copy(layer.self_attn)
            if hasattr(attention, "rope"):
                attention.rope = Tap(attention.rope, self._note_position)
            if "memory" in attention:
                attention.memory = memory = WatchedMemory.of(attention.memory)
                memory._writes = []
                self.memories.append((memory.initial_norms, memory._writes))

    def _note_stream(self, x: mx.array) -> None:
        self.stream = x

    def _note_position(self, x: mx.array, offset: Any = 0) -> None:
        self.turned = max(self.turned, int(np.asarray(offset).max()) + x.shape[-2] - 1)

    def forget(self) -> None:
        """Forgets the writes."""
        for _, writes in self.memories:
            writes.clear()


def edited(paragraphs: list[list[int]], seed: int) -> Iterator[int]:
    """Tokens of a text, and then, without end, the same text with its paragraphs in
    another order and some tokens replaced by others of it."""
    draw = random.Random(seed)
    everything = [token for paragraph in paragraphs for token in paragraph]
    yield from everything
    while True:
        for paragraph in draw.sample(paragraphs, len(paragraphs)):
            for token in paragraph:
                yield draw.choice(everything) if draw.random() < EDITED else token


def _largest(numbers: list[mx.array]) -> mx.array:
    """0 of none: there is no memory."""
    return mx.stack([mx.array(0.0), *(x.max() for x in numbers)]).max()


def _norms(matrices: list[mx.array]) -> list[mx.array]:
    return [mx.sqrt(mx.square(x).sum((-2, -1))) for x in matrices]


def _look(watched: Watched, logits: mx.array, block: list[int]) -> list[mx.array]:
    """nll, row, momentum, update and activation of a block; see :class:`Mark`."""
    losses = nn.losses.cross_entropy(
        logits[0, :-1].astype(mx.float32), mx.array(block[1:]), reduction="mean"
    )
    rows: list[mx.array] = []
    momenta: list[mx.array] = []
    updates: list[mx.array] = []
    for initial, writes in watched.memories:
        for old, new in writes:
            lengths = row_norms(new.weights)
            rows += [x / n for x, n in zip(lengths, initial, strict=True)]
            momenta += new.momentum
            updates += [a - b for a, b in zip(new.weights, old.weights, strict=True)]
    stream = mx.abs(watched.stream.astype(mx.float32)).max()
    momentum, update = _largest(_norms(momenta)), _largest(_norms(updates))
    return [losses, _largest(rows), momentum, update, stream]


def soak(
    model: Model, cache: list[Any], tokens: Iterator[int], total: int
) -> Iterator[Mark]:
    """Reads tokens, and says from time to time what was seen.

    Args:
        model (Model): a hybrid.
        cache (list): a state that has read nothing, updated in place.
        tokens (Iterator): ids, at least ``total``.
        total (int): tokens to read; at least two blocks.
    """
    watched = Watched(model)
    size = model.allmem.block
    every = max(size * LOOKED_AT, total // (MARKS * size) * size)
    read = 0
    seen: list[Any] = []
    mx.reset_peak_memory()
    start, since = time.perf_counter(), 0
    while read < total:
        part = list(islice(tokens, min(size, total - read)))
        # The last part may be of one token, which nothing is predicted of.
        look = len(part) == size and read // size % LOOKED_AT == LOOKED_AT - 1
        for block in blocks(part, model):
            logits = watched.model(mx.array(block)[None], cache=cache)
            mx.eval([c.state for c in cache])
        if look:
            seen.append(mx.stack(_look(watched, logits, block)).tolist())
        watched.forget()
        del logits
        mx.clear_cache()
        read += len(part)
        # What is left over belongs to the last mark: none is of a few tokens.
        full = read % every == 0 and total - read >= every
        if seen and (full or read == total):
            now = time.perf_counter()
            nll = float(np.mean([x[0] for x in seen]))
            row, momentum, update, activation = map(float, np.max(seen, axis=0)[1:])
            yield Mark(
                position=read,
                nll=nll,
                row=row,
                momentum=momentum,
                update=update,
                activation=activation,
                finite=bool(np.isfinite(seen).all()),
                turned=watched.turned,
                peak=mx.get_peak_memory(),
                tps=(read - since) / (now - start),
            )
            mx.reset_peak_memory()
            seen, since, start = [], read, now


def summarize(model: Model, marks: list[Mark]) -> dict[str, Any]:
    """What a soak is run for. The first mark warms up."""
    c = model.allmem
    found: dict[str, Any] = {
        "finite": all(mark.finite for mark in marks),
        "largest position": marks[-1].turned,
        "largest allowed": c.sinks + c.window + c.chunk,
        "peak over that of the first": max(x.peak for x in marks) / marks[0].peak,
    }
    if len(marks) > 4:
        found["NLL after warm-up"] = (marks[1].nll + marks[2].nll) / 2
        found["NLL at the end"] = (marks[-2].nll + marks[-1].nll) / 2
    return found


def describe(marks: list[Mark], summary: dict[str, Any]) -> str:
    """A line for each mark, and the summary."""
    head = ["tokens", "NLL", "row / N", "||M||", "||dW||", "max |x|", "finite"]
    head += ["RoPE", "peak GB", "tok/s"]
    rows = [
        [
            f"{mark.position:,}",
            f"{mark.nll:.4f}",
            f"{mark.row:.3f}",
            f"{mark.momentum:.2f}",
            f"{mark.update:.2f}",
            f"{mark.activation:.1f}",
            "yes" if mark.finite else "NO",
            f"{mark.turned:,}",
            f"{mark.peak / 1e9:.4f}",
            f"{mark.tps:.1f}",
        ]
        for mark in marks
    ]
    lines = [
        f"{name}: {value:.4f}" if type(value) is float else f"{name}: {value}"
        for name, value in summary.items()
    ]
    return "\n".join([table(head, rows), *lines])


def plot(marks: list[Mark], title: str) -> bytes:
    """A PNG: likelihood, norms and memory by tokens read."""

    def curve(name: str, unit: float = 1.0) -> list[tuple[float, float]]:
        return [(mark.position, getattr(mark, name) / unit) for mark in marks]

    norms = {
        "row / N": curve("row"),
        "||M||": curve("momentum"),
        "||dW||": curve("update"),
    }
    across = "tokens read"
    return panels(
        [
            Panel(across, "nats per token", {"NLL": curve("nll")}),
            Panel(across, "norm", norms),
            Panel(across, "peak memory, GB", {"peak": curve("peak", 1e9)}),
        ],
        title,
    )
