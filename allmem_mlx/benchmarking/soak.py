"""A long reading, monitored: likelihood, norms and memory by position."""

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

from ..cli.plots import Panel, draw
from ..cli.report import table
from ..evaluation.systems import blocks
from ..hooks import Hooked
from ..memory.fast_weights import Matrices, row_norms
from ..memory.kernels import Operations
from ..memory.layer import Memory, MemoryState
from ..model import Model

MARKS = 20  # rows of the table
SAMPLED = 4  # one block in so many is measured
EDITED = 0.02  # share of tokens that are replaced when a text comes again


@dataclass(frozen=True)
class Mark:
    """The measurements since the previous mark.

    Args:
        position (int): tokens read in all.
        nll (float): mean negative log-likelihood of the tokens measured, in nats.
        row (float): largest norm of a row of W, as a multiple of its initial norm.
        momentum (float): largest ``||M||_F`` of a matrix.
        update (float): largest ``||W' - W||_F`` of a matrix from one chunk to the next.
        activation (float): largest ``|x|`` of the residual stream before the last norm.
        finite (bool): ``True`` if all of these are finite.
        turned (int): largest position that RoPE was given.
        peak (int): peak memory in bytes.
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


class RecordingMemory(Memory):
    """A memory that records its states before and after each write."""

    def learn(
        self, ops: Operations, state: MemoryState, rows: mx.array, token: int
    ) -> MemoryState:
        """See :class:`Memory`."""
        after = super().learn(ops, state, rows, token)
        if (token + rows.shape[2]) % self.config.chunk == 0:
            self._writes.append((state, after))
        return after


class RecordingModel:
    """A model that records its residual stream, the writes of its memories and the
    positions it rotates.

    Args:
        model (Model): the hybrid; it is not changed.
    """

    def __init__(self, model: Model):
        self.stream, self.turned = mx.array(0.0), 0
        # Of each memory: the row norms of W0, and its last writes.
        self.memories: list[tuple[Matrices, list[tuple[MemoryState, ...]]]] = []
        self.model = copy.copy(model)
        body, names = copy.copy(model.body), model.family.names
        setattr(self.model, names.body, body)
        setattr(body, names.norm, Hooked(body[names.norm], self._record_stream))
        body.layers = [copy.copy(layer) for layer in model.layers]
        for i, attention in model.attentions.items():
            attention = copy.copy(attention)
            self.model.set_attention(i, attention)
            if hasattr(attention, "rope"):
                attention.rope = Hooked(attention.rope, self._record_position)
            if "memory" in attention:
                attention.memory = memory = RecordingMemory.of(attention.memory)
                memory._writes = []
                self.memories.append((memory.initial_norms, memory._writes))

    def _record_stream(self, x: mx.array) -> None:
        self.stream = x

    def _record_position(self, x: mx.array, offset: Any = 0) -> None:
        self.turned = max(self.turned, int(np.asarray(offset).max()) + x.shape[-2] - 1)

    def forget(self) -> None:
        """Forgets the writes."""
        for _, writes in self.memories:
            writes.clear()


def edited(paragraphs: list[list[int]], seed: int) -> Iterator[int]:
    """Endless tokens: those of a text, then the same text again and again with its
    paragraphs shuffled and some tokens replaced by others of it."""
    draw = random.Random(seed)
    everything = [token for paragraph in paragraphs for token in paragraph]
    yield from everything
    while True:
        for paragraph in draw.sample(paragraphs, len(paragraphs)):
            for token in paragraph:
                yield draw.choice(everything) if draw.random() < EDITED else token


def _largest(numbers: list[mx.array]) -> mx.array:
    """The largest number; 0 of none, if there is no memory."""
    return mx.stack([mx.array(0.0), *(x.max() for x in numbers)]).max()


def _norms(matrices: list[mx.array]) -> list[mx.array]:
    return [mx.sqrt(mx.square(x).sum((-2, -1))) for x in matrices]


def _measure(
    recording: RecordingModel, logits: mx.array, block: list[int]
) -> list[mx.array]:
    """The nll, row, momentum, update and activation of a block; see :class:`Mark`."""
    losses = nn.losses.cross_entropy(
        logits[0, :-1].astype(mx.float32), mx.array(block[1:]), reduction="mean"
    )
    rows: list[mx.array] = []
    momenta: list[mx.array] = []
    updates: list[mx.array] = []
    for initial, writes in recording.memories:
        for old, new in writes:
            lengths = row_norms(new.weights)
            rows += [x / n for x, n in zip(lengths, initial, strict=True)]
            momenta += new.momentum
            updates += [a - b for a, b in zip(new.weights, old.weights, strict=True)]
    stream = mx.abs(recording.stream.astype(mx.float32)).max()
    momentum, update = _largest(_norms(momenta)), _largest(_norms(updates))
    return [losses, _largest(rows), momentum, update, stream]


def soak(
    model: Model, cache: list[Any], tokens: Iterator[int], total: int
) -> Iterator[Mark]:
    """Reads tokens, and yields measurements at about 20 positions.

    Args:
        model (Model): a hybrid.
        cache (list): an empty state, updated in place.
        tokens (Iterator): ids, at least ``total``.
        total (int): tokens to read; at least two blocks.
    """
    recording = RecordingModel(model)
    size = model.allmem.block
    every = max(size * SAMPLED, total // (MARKS * size) * size)
    read = 0
    samples: list[Any] = []
    mx.reset_peak_memory()
    start, since = time.perf_counter(), 0
    while read < total:
        part = list(islice(tokens, min(size, total - read)))
        # The last part may be a single token, of which nothing is predicted.
        sampled = len(part) == size and read // size % SAMPLED == SAMPLED - 1
        for block in blocks(part, model):
            logits = recording.model(mx.array(block)[None], cache=cache)
            mx.eval([c.state for c in cache])
        if sampled:
            samples.append(mx.stack(_measure(recording, logits, block)).tolist())
        recording.forget()
        del logits
        mx.clear_cache()
        read += len(part)
        # A remainder belongs to the last mark: none is of a few tokens.
        full = read % every == 0 and total - read >= every
        if samples and (full or read == total):
            now = time.perf_counter()
            row, momentum, update, activation = map(float, np.max(samples, 0)[1:])
            yield Mark(
                position=read,
                nll=float(np.mean([x[0] for x in samples])),
                row=row,
                momentum=momentum,
                update=update,
                activation=activation,
                finite=bool(np.isfinite(samples).all()),
                turned=recording.turned,
                peak=mx.get_peak_memory(),
                tps=(read - since) / (now - start),
            )
            mx.reset_peak_memory()
            samples, since, start = [], read, now


def summarize(model: Model, marks: list[Mark]) -> dict[str, Any]:
    """The bounds that a soak is run to check. The first mark warms up."""
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
    """A table with a row for each mark, and the summary."""
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


def plot(result: dict[str, Any], path: str) -> None:
    """Draws likelihood, norms and memory by tokens read.

    Args:
        result (dict): what ``benchmark --soak --json`` writes.
        path (str): the PNG for light pages; see :func:`draw`.
    """
    marks, summary = result["marks"], result["summary"]

    def panel(title: str, quantity: str, names: dict[str, str], unit: int = 1) -> Panel:
        curves = {
            label: [
                (x["position"], x[name] / unit) for x in marks if x[name] is not None
            ]
            for name, label in names.items()
        }
        zero = unit > 1
        return Panel(
            title, "tokens read", quantity, curves, x_log=False, from_zero=zero
        )

    title = "Negative log-likelihood"
    if before := summary.get("NLL after warm-up"):
        after = summary["NLL at the end"]
        title = f"NLL is {before:.2f} after warm-up, and {after:.2f} at the end"
    norms = {"row": "row / N", "momentum": "||M||", "update": "||dW||"}
    largest = max(mark[name] or 0 for mark in marks for name in norms)
    growth = 100 * (summary["peak over that of the first"] - 1)
    panels = [
        panel(title, "nats per token", {"nll": "NLL"}),
        panel(f"Norms are at most {largest:.1f}", "norms of the memory", norms),
        panel(f"Peak memory grows by {growth:.1f} %", "GB", {"peak": "peak"}, 10**9),
    ]
    draw(panels, result["title"], path)
