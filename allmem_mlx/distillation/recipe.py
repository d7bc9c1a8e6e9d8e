"""How a memory is trained: every setting that both ways of distilling share."""

import argparse
import math
import random
from dataclasses import dataclass, fields
from typing import Any

from ..errors import SettingError
from .documents import Document, Source


def whole_numbers(name: str, text: str, smallest: float = -math.inf) -> list[int]:
    """A setting that lists numbers.

    Args:
        name (str): of the setting.
        text (str): the numbers, with commas between them.
        smallest (float): that any of them may be.

    Raises:
        SettingError: if it is something else.
    """
    try:
        numbers = [int(x) for x in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < smallest:
        raise SettingError(
            f"{name} is {text!r}; it must be whole numbers with commas between them"
        )
    return numbers


@dataclass(frozen=True)
class Recipe:
    """The recipe. ``--help`` of either program lists the same as flags.

    Args:
        data (str): folder of text files (``*.txt``), or of mlx-lm's ``train.jsonl``
            and ``valid.jsonl``.
        held_out (str): beginnings of names of text files that are not trained on,
            separated by commas.
        validation (str): those that are judged on while training.
        alpha (float): where alpha starts.
        lengths, windows, sinks, chunks (str): what each step draws from, separated by
            commas.
        window_dropout (float): share of steps in which the window is one chunk: all
            that is older has to come from the memory.
        batch_size (int): documents in a step.
        iters (int): steps in all.
        repeats, facts (float): shares of documents with repeated passages and with
            planted facts; the rest are as in ``data``.
        answer_weight (float): of the mean loss over answers, beside that over the
            positions beyond the window.
        rate, w0_rate (float): peak learning rates of the projections and of the
            initial fast weights, as shares of the root mean square of each matrix.
        alpha_rate, gate_rate (float): peak rates of alpha, and of biases, taps and
            norms.
        warm_up, decay (float): shares of the steps in which the rates rise, and fall.
        clip (float): largest norm of the gradient.
        stage2 (int): documents whose answers are the student's own, collected once
            before the first step, and trained on instead of all others. 0: none.
        grad_checkpoint (bool): compute activations again instead of keeping them.
        save_every (int): steps between two checkpoints.
        steps_per_eval (int): steps between two evaluations.
        seed (int): of everything drawn.

    Raises:
        SettingError: if settings are impossible, alone or together.
    """

    data: str
    held_out: str = ""
    validation: str = "valid"
    alpha: float = 0.1
    lengths: str = "1024,1024,2048"
    windows: str = "128,256"
    sinks: str = "16"
    chunks: str = "64"
    window_dropout: float = 0.05
    batch_size: int = 4
    iters: int = 150
    repeats: float = 0.25
    facts: float = 0.3
    answer_weight: float = 0.1
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
        for name in ("batch_size", "iters", "save_every", "steps_per_eval"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1")
        shortest = min(self.numbers("lengths"))
        longest = max(self.numbers("windows") + self.numbers("chunks"))
        if longest >= shortest - 1:
            raise SettingError(
                f"a document of {shortest} tokens has nothing beyond a window or chunk "
                f"of {longest}"
            )
        if min(self.stage2, self.answer_weight) < 0:
            raise SettingError("stage2 and answer_weight must not be below 0")
        if min(self.repeats, self.facts) < 0 or self.repeats + self.facts > 1:
            raise SettingError("repeats and facts must be shares of at most 1 together")

    def numbers(self, name: str) -> list[int]:
        """A setting that lists numbers."""
        return whole_numbers(name, getattr(self, name))

    def scale(self, step: int) -> float:
        """The learning rate at a step, 1 at its peak: warm-up, stable, decay."""
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
    """Whether a parameter's rate is a share of its size: of the root mean square of a
    matrix, or of each row of ``in_proj``."""
    return name.endswith("proj.weight") or ".w0_" in name


@dataclass(frozen=True)
class Step:
    """What one step trains on.

    Args:
        window, sinks, chunk (int): of all layers.
        documents (list): a batch.
    """

    window: int
    sinks: int
    chunk: int
    documents: list[Document]


def draw_step(recipe: Recipe, source: Source, step: int) -> Step:
    """What a step trains on; it depends on the seed and the step alone."""
    draw = source.random = random.Random(f"{recipe.seed} {step}")
    window = draw.choice(recipe.numbers("windows"))
    sinks = draw.choice(recipe.numbers("sinks"))
    chunk = draw.choice(recipe.numbers("chunks"))
    if draw.random() < recipe.window_dropout:
        window = chunk
    length = draw.choice(recipe.numbers("lengths"))
    documents = [
        draw_document(recipe, source, length, window) for _ in range(recipe.batch_size)
    ]
    return Step(window, sinks, chunk, documents)


def draw_document(recipe: Recipe, source: Source, length: int, window: int) -> Document:
    """A document of one of the three kinds, by their shares."""
    kind = source.random.random()
    if kind < recipe.repeats:
        return source.repeat(length)
    if kind < recipe.repeats + recipe.facts:
        return source.facts(length)
    return source.natural(length, window)


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """Adds a flag for each field of a dataclass."""
    for field in fields(settings):
        name = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(name, action="store_true")
        elif field.default is field.default_factory:  # neither: it is required
            parser.add_argument(name, type=field.type, required=True)
        else:
            parser.add_argument(
                name, type=field.type, default=field.default, help="%(default)s"
            )


def settings_of(args: argparse.Namespace, settings: type) -> Any:
    """The dataclass, of what :func:`add_settings` parsed."""
    names = [field.name for field in fields(settings)]
    return settings(**{name: getattr(args, name) for name in names})
