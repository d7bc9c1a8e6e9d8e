"""How a memory is trained: the settings that both back ends share."""

import argparse
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from inspect import getdoc
from itertools import chain, product
from typing import Any

from ..errors import SettingError
from .documents import Document, Segment, Source


def whole_numbers(name: str, text: str, smallest: float = -math.inf) -> list[int]:
    """A setting that lists numbers.

    Args:
        name (str): of the setting.
        text (str): the numbers, separated by commas.
        smallest (float): the smallest that is allowed.

    Raises:
        SettingError: if it is anything else.
    """
    try:
        numbers = [int(x) for x in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < smallest:
        raise SettingError(
            f"{name} is {text!r}; it must be whole numbers separated by commas"
        )
    return numbers


@dataclass(frozen=True)
class Recipe:
    """The settings of a distillation; each is a flag of both commands.

    A document is read in segments, a step each: a segment starts from the state that
    the one before it left, without a gradient into it. So the memory meets states of
    every age, and is asked for what it read many steps ago.

    Args:
        data (str): folder of text files (``*.txt``), of folders of them, one for each
            kind of text, or of mlx-lm's ``train.jsonl`` and ``valid.jsonl``.
        held_out (str): beginnings of names of text files that are not trained on,
            separated by commas.
        validation (str): beginnings of names of those for validation.
        alpha (float): initial alpha.
        lengths, windows, sinks, chunks (str): tokens of a segment, and what its
            document is read with; values that each document draws from, separated by
            commas.
        segments (int): segments of a document.
        context (int): tokens before a segment that the teacher sees.
        window_dropout (float): share of documents whose window is one chunk, so that
            anything older must come from the memory.
        batch_size (int): documents that are read together.
        iters (int): number of steps.
        repeats, facts (float): shares of documents with repeated passages and with
            planted facts; the rest are as in ``data``.
        distance (int): tokens between a fact and its question, at most, at first. It
            doubles when more than ``promote`` of the questions about facts from beyond
            half of it are answered.
        promote (float): see ``distance``.
        answer_rate (float): factor of the learning rates in the step that answers to
            planted questions make on their own, with their own moments.
        rate, w0_rate (float): peak learning rates of the projections and of the
            initial fast weights, relative to the root mean square of each matrix.
        alpha_rate, gate_rate (float): peak learning rates of alpha, and of biases,
            taps and norms.
        warm_up, decay (float): shares of the steps in which the learning rates rise,
            and fall.
        clip (float): largest norm of the gradient.
        stage2 (int): number of documents with the student's own answers, which are
            collected before the first step and are all that is trained on. 0: none.
        grad_checkpoint (bool): recompute activations instead of storing them.
        save_every (int): steps between two checkpoints, at least; one is written where
            a document ends.
        steps_per_eval (int): steps between two evaluations.
        seed (int): of the random draws.

    Raises:
        SettingError: if a setting is impossible.
    """

    data: str
    held_out: str = ""
    validation: str = "valid"
    alpha: float = 0.1
    lengths: str = "1024,2048"
    windows: str = "128,256"
    sinks: str = "16"
    chunks: str = "64"
    segments: int = 8
    context: int = 1024
    window_dropout: float = 0.1
    batch_size: int = 4
    iters: int = 160
    repeats: float = 0.15
    facts: float = 0.35
    distance: int = 1024
    promote: float = 0.6
    answer_rate: float = 0.3
    rate: float = 1e-2
    w0_rate: float = 3e-3
    alpha_rate: float = 2e-3
    gate_rate: float = 2e-3
    warm_up: float = 0.05
    decay: float = 0.3
    clip: float = 1.0
    stage2: int = 0
    grad_checkpoint: bool = False
    save_every: int = 10
    steps_per_eval: int = 50
    seed: int = 0

    def __post_init__(self):
        for name in ("lengths", "windows", "sinks", "chunks"):
            whole_numbers(name, getattr(self, name), smallest=name != "sinks")
        counts = "batch_size iters segments distance save_every steps_per_eval"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1")
        shortest = min(self.numbers("lengths"))
        longest = max(self.numbers("windows") + self.numbers("chunks"))
        if longest >= shortest * self.segments - 1:
            raise SettingError(
                f"a document of {shortest * self.segments} tokens has nothing beyond a "
                f"window or chunk of {longest}"
            )
        for length, chunk in product(self.numbers("lengths"), self.numbers("chunks")):
            if self.segments > 1 and length % chunk:
                raise SettingError(
                    f"lengths has {length}; it must be a multiple of every chunk, as "
                    f"of {chunk}, where a document has several segments"
                )
        for name in ("stage2", "context", "answer_rate"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} must not be below 0")
        if min(self.repeats, self.facts) < 0 or self.repeats + self.facts > 1:
            raise SettingError("repeats and facts must be shares of at most 1 together")

    def numbers(self, name: str) -> list[int]:
        """The numbers that a setting lists."""
        return whole_numbers(name, getattr(self, name))

    def schedule(self, step: int) -> float:
        """The learning rate relative to its peak: warm-up, stable, decay."""
        rise = (step + 1) / max(1, self.warm_up * self.iters)
        fall = (self.iters - step) / max(1, self.decay * self.iters)
        return min(1.0, rise, fall)

    def peak(self, name: str) -> float:
        """The peak learning rate of a parameter; see :func:`is_relative`."""
        if name.endswith("proj.weight"):
            return self.rate
        if ".w0_" in name:
            return self.w0_rate
        return self.alpha_rate if name.endswith("alpha") else self.gate_rate


def is_relative(name: str) -> bool:
    """Whether a parameter's learning rate is relative to its size: the root mean square
    of a matrix, or of each row of ``in_proj``."""
    return name.endswith("proj.weight") or ".w0_" in name


@dataclass(frozen=True)
class Batch:
    """Documents that are read together, and the hybrid layers' settings for them.

    Args:
        window, sinks, chunk (int): of all layers.
        length (int): tokens of a segment.
        documents (list): the documents.
    """

    window: int
    sinks: int
    chunk: int
    length: int
    documents: list[Document]

    def step(self, number: int, context: int) -> "Step":
        """The step for their segments of a number."""
        segments = [
            document.segment(number * self.length, self.length, context)
            for document in self.documents
        ]
        return Step(self.window, self.sinks, self.chunk, segments, number > 0)


@dataclass(frozen=True)
class Step:
    """What is trained on at once.

    Args:
        window, sinks, chunk (int): of all layers.
        segments (list): one of each document.
        goes_on (bool): whether they start from the states that the ones before left.
    """

    window: int
    sinks: int
    chunk: int
    segments: list[Segment]
    goes_on: bool = False


def draw_batch(recipe: Recipe, source: Source, number: int, distance: int) -> Batch:
    """Draws documents and their settings, which depend on the seed, their number and
    the distance of questions alone."""
    draw = source.random = random.Random(f"{recipe.seed} {number}")
    window = draw.choice(recipe.numbers("windows"))
    sinks = draw.choice(recipe.numbers("sinks"))
    chunk = draw.choice(recipe.numbers("chunks"))
    if draw.random() < recipe.window_dropout:
        window = chunk
    length = draw.choice(recipe.numbers("lengths"))
    documents = [
        draw_document(recipe, source, recipe.segments * length, distance)
        for _ in range(recipe.batch_size)
    ]
    return Batch(window, sinks, chunk, length, documents)


def draw_document(
    recipe: Recipe, source: Source, length: int, distance: int
) -> Document:
    """Draws a document of one of the three kinds, by their shares."""
    if recipe.stage2:
        return source.natural(length)
    kind = source.random.random()
    if kind < recipe.repeats:
        return source.repeat(length)
    if kind < recipe.repeats + recipe.facts:
        return source.facts(length, distance)
    return source.natural(length)


def add_settings(parser: argparse.ArgumentParser, *settings: type) -> None:
    """Adds a flag for each field of some dataclasses, with its description there."""
    descriptions = dict(chain.from_iterable(map(_descriptions, settings)))
    for field in chain.from_iterable(map(fields, settings)):
        name, text = "--" + field.name.replace("_", "-"), descriptions[field.name]
        if field.type is bool:
            parser.add_argument(name, action="store_true", help=text)
        elif field.default is field.default_factory:  # neither: it is required
            parser.add_argument(name, type=field.type, required=True, help=text)
        else:
            default = "" if field.default == "" else f" Default: {field.default}"
            parser.add_argument(
                name, type=field.type, default=field.default, help=text + default
            )


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """Adds a flag that is no setting: another value goes on with the same run."""
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="Time after which to stop, with a checkpoint, when the documents that are "
        "being read end; the same command goes on. Default: none",
    )


def _descriptions(settings: type) -> Iterator[tuple[str, str]]:
    """The names of fields and their descriptions in a docstring."""
    entries = re.findall(
        r"^    ([\w, ]+) \(\w+\): (.*(?:\n {8}.*)*)",
        getdoc(settings) or "",
        re.MULTILINE,
    )
    for names, text in entries:
        text = " ".join(text.replace("``", "").split())
        for name in names.split(", "):
            yield name, text[0].upper() + text[1:]


def settings_of(args: argparse.Namespace, settings: type) -> Any:
    """The dataclass from the flags of :func:`add_settings`."""
    names = [field.name for field in fields(settings)]
    return settings(**{name: getattr(args, name) for name in names})
