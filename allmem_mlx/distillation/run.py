"""A distillation on any back end: its steps, its checkpoints and its log."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from statistics import mean
from typing import Any, NamedTuple, Protocol

from ..errors import AllMemError, reason
from .documents import Source
from .recipe import Batch, Recipe, Step, draw_batch
from .stage2 import collect, collected

# What a run goes on with, besides what its trainer keeps.
COUNTS = ("step", "scored", "distance", "asked", "right")
# Scored tokens, and the share of the gap to full attention on validation books that the
# default's memory had closed after them (docs/experiments.md).
EXPECTED = {133_000: 0.19, 463_000: 0.28, 751_000: 0.44, 1_850_000: 0.49}
ENOUGH = 16  # answers that decide whether questions become harder


class StepResult(NamedTuple):
    """The outcome of a training step.

    Args:
        loss (float): mean divergence from the teacher, in nats.
        scored (int): positions that it is computed on.
        grad_norm (float): before clipping.
        answers (list): for each answer in the segments, in any order, the distance of
            its fact, and whether every token of it was the likeliest.
    """

    loss: float
    scored: int
    grad_norm: float
    answers: list[tuple[int, bool]]


class Trainer(Protocol):
    """A student, its teacher and its optimizer on one back end.

    Of the processes that train together, the one that ``leads`` writes files.
    """

    settings: Any  # a dataclass
    recipe: Recipe
    folder: Path  # for the trained memory, the checkpoint and the log
    source: Source
    leads: bool
    checkpoint: str  # name of the file
    metric: str  # name of the scores of ``judge``

    # Initializes the memory and the optimizer; returns entries for the log.
    def start(self) -> dict[str, Any]: ...
    # Trains on segments, with a learning rate relative to its peak.
    def train_step(self, step: Step, rate: float) -> StepResult: ...
    # Scores the student on validation documents, beside the controls.
    def judge(self) -> dict[str, Any]: ...
    # Answers a prompt, greedily.
    def answer(self, prompt: list[int], max_tokens: int) -> list[int]: ...
    # Writes the checkpoint, with the progress in it, and the trained memory.
    def save(self, progress: dict[str, Any]) -> None: ...
    # Reads the progress in a checkpoint, and the state to restore.
    def read_checkpoint(self, file: Path) -> tuple[dict[str, Any], Any]: ...
    def restore(self, state: Any) -> None: ...
    # Waits for the other processes.
    def wait(self) -> None: ...
    # Peak memory in bytes; 0 if it is not known.
    def peak_memory(self) -> int: ...


class Run:
    """A distillation that can be stopped at any time, and continues exactly from its
    last checkpoint.

    Args:
        trainer (Trainer): computes the steps.

    Raises:
        AllMemError: if the folder cannot be made, or has a checkpoint that is damaged
            or of other settings.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.recipe = trainer, trainer.recipe
        self.folder, self.source = trainer.folder, trainer.source
        self.step, self.scored = 0, 0
        self.distance, self.asked, self.right = self.recipe.distance, 0, 0
        self.batch: Batch | None = None
        self.described = {
            "settings": asdict(trainer.settings),
            "recipe": asdict(trainer.recipe),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AllMemError(
                f"{self.folder} cannot be made: {reason(error)}"
            ) from None
        file = self.folder / trainer.checkpoint
        if file.exists():
            self._resume(file)
        else:
            self.log(**self.described, **trainer.start())
        if self.recipe.stage2:
            if trainer.leads:
                collect(trainer.answer, self.recipe, self.source, self.folder)
            trainer.wait()
            self.source = collected(self.recipe, self.source, self.folder)

    def _resume(self, file: Path) -> None:
        try:
            progress, state = self.trainer.read_checkpoint(file)
            counts = [progress[name] for name in COUNTS]
            described = {key: progress[key] for key in self.described}
        except (LookupError, ValueError, RuntimeError, EOFError, UnpicklingError) as e:
            raise AllMemError(f"{file} is no checkpoint: {reason(e)}") from None
        if described != self.described:
            raise AllMemError(
                f"{file} is of a run with other settings; choose another folder, or "
                "give the same settings"
            )
        self.trainer.restore(state)
        for name, count in zip(COUNTS, counts, strict=True):
            setattr(self, name, count)

    def train(self, minutes: float = math.inf) -> None:
        """Trains to the end, with checkpoints on the way.

        Args:
            minutes (float): time after which it stops, at the next end of a document.
        """
        recipe, start = self.recipe, time.perf_counter()
        first = saved = self.step
        self._print(self._plan())
        if self.step == 0:
            self.judge()
        while self.step < recipe.iters:
            began = time.perf_counter()
            self.train_step()
            if self.step == first + 1:
                seconds = (time.perf_counter() - began) * (recipe.iters - self.step)
                self._print(f"about {_duration(seconds)} to go")
            last = self.step == recipe.iters
            between = self.step % recipe.segments == 0
            enough = (time.perf_counter() - start) / 60 >= minutes
            if last or between and (enough or self.step - saved >= recipe.save_every):
                self.save()
                saved = self.step
            if last or self.step % recipe.steps_per_eval == 0:
                self.judge()
            if between and enough:
                self._print("stopped; the same command goes on")
                break

    def train_step(self) -> None:
        """Trains on the next segments."""
        start = time.perf_counter()
        number, segment = divmod(self.step, self.recipe.segments)
        if segment == 0 or self.batch is None:
            self._judge_distance()
            self.batch = draw_batch(self.recipe, self.source, number, self.distance)
        step = self.batch.step(segment, self.recipe.context)
        result = self.trainer.train_step(step, self.recipe.schedule(self.step))
        self.step += 1
        self.scored += result.scored
        far = [
            right for distance, right in result.answers if 2 * distance > self.distance
        ]
        self.asked, self.right = self.asked + len(far), self.right + sum(far)
        seconds = time.perf_counter() - start
        self.log(
            loss=round(result.loss, 4),
            window=step.window,
            chunk=step.chunk,
            length=self.batch.length,
            segment=segment,
            answered=[len(result.answers), sum(right for _, right in result.answers)],
            distance=self.distance,
            gradient=round(result.grad_norm, 4),
            seconds=round(seconds, 2),
        )
        tokens = sum(len(x.tokens) for x in step.segments)
        line = (
            f"Train loss {result.loss:.3f}, Tokens/sec {tokens / seconds:.1f}, "
            f"Scored tokens {self.scored}"
        )
        if peak := self.trainer.peak_memory():
            line += f", Peak mem {peak / 1e9:.3f} GB"
        self._print(line)

    def _judge_distance(self) -> None:
        """Doubles the distance of questions once enough of the far ones are answered,
        up to the length of the longest document."""
        recipe = self.recipe
        if self.asked < ENOUGH:
            return
        if self.right > recipe.promote * self.asked:
            longest = recipe.segments * max(recipe.numbers("lengths"))
            self.distance = min(2 * self.distance, longest)
        self.asked = self.right = 0

    def judge(self) -> None:
        """Scores the student on validation documents."""
        if self.trainer.leads:
            scores = self.trainer.judge()
            self.log(judged=scores)
            self._print(f"Val {self.trainer.metric}: {_listed(scores)}")

    def save(self) -> None:
        """Writes the checkpoint and the trained memory."""
        if not self.trainer.leads:
            return
        try:
            counts = {name: getattr(self, name) for name in COUNTS}
            self.trainer.save({**counts, **self.described})
        except (OSError, RuntimeError) as error:
            raise AllMemError(
                f"{self.folder} cannot be written: {reason(error)}"
            ) from None

    def log(self, **entry: Any) -> None:
        """Appends a line to ``log.jsonl``."""
        if self.trainer.leads:
            line = json.dumps({"step": self.step, "scored": self.scored, **entry})
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(line + "\n")

    def _plan(self) -> str:
        """How much will be trained on, and what to expect of it."""
        recipe = self.recipe
        length = mean(recipe.numbers("lengths"))
        tokens = recipe.iters * recipe.batch_size * length
        reached = [share for needed, share in EXPECTED.items() if needed <= tokens]
        share = f"about {reached[-1]:.0%}" if reached else "next to nothing"
        return (
            f"{recipe.iters} steps, {tokens / 1e6:.2f} million tokens, in documents of "
            f"{recipe.segments * length:,.0f}; as many closed {share} of the gap to "
            "full attention for SmolLM2-135M on books"
        )

    def _print(self, line: str) -> None:
        if self.trainer.leads:
            print(f"Iter {self.step}: {line}", flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _listed(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_listed(x)})" if isinstance(x, dict) else f"{name} {x:.4f}"
        for name, x in scores.items()
        if x is not None
    )
