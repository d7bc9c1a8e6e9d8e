"""A distillation on any back end: its steps, its checkpoints and its log."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol

from ..errors import AllMemError, reason
from .documents import Source
from .recipe import Recipe, Step, draw_step
from .stage2 import collect, collected


class StepResult(NamedTuple):
    """The outcome of a training step."""

    loss: float  # mean over the batch, in nats
    scored: int  # positions that the loss is computed on
    grad_norm: float  # before clipping


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
    # Trains on a batch, with a learning rate relative to its peak.
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
            step, scored = progress["step"], progress["scored"]
            described = {key: progress[key] for key in self.described}
        except (LookupError, ValueError, RuntimeError, EOFError, UnpicklingError) as e:
            raise AllMemError(f"{file} is no checkpoint: {reason(e)}") from None
        if described != self.described:
            raise AllMemError(
                f"{file} is of a run with other settings; choose another folder, or "
                "give the same settings"
            )
        self.trainer.restore(state)
        self.step, self.scored = step, scored

    def train(self) -> None:
        """Trains to the end, with checkpoints on the way."""
        recipe = self.recipe
        if self.step == 0:
            self.judge()
        while self.step < recipe.iters:
            self.train_step()
            last = self.step == recipe.iters
            if last or self.step % recipe.save_every == 0:
                self.save()
            if last or self.step % recipe.steps_per_eval == 0:
                self.judge()

    def train_step(self) -> None:
        """Draws a batch and trains on it."""
        start = time.perf_counter()
        step = draw_step(self.recipe, self.source, self.step)
        result = self.trainer.train_step(step, self.recipe.schedule(self.step))
        self.step += 1
        self.scored += result.scored
        seconds = time.perf_counter() - start
        self.log(
            loss=round(result.loss, 4),
            window=step.window,
            chunk=step.chunk,
            length=len(step.documents[0].tokens),
            gradient=round(result.grad_norm, 4),
            seconds=round(seconds, 2),
        )
        tokens = sum(len(document.tokens) for document in step.documents)
        line = (
            f"Train loss {result.loss:.3f}, Tokens/sec {tokens / seconds:.1f}, "
            f"Scored tokens {self.scored}"
        )
        if peak := self.trainer.peak_memory():
            line += f", Peak mem {peak / 1e9:.3f} GB"
        self._print(line)

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
            self.trainer.save(
                {"step": self.step, "scored": self.scored, **self.described}
            )
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

    def _print(self, line: str) -> None:
        if self.trainer.leads:
            print(f"Iter {self.step}: {line}", flush=True)


def _listed(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_listed(x)})" if isinstance(x, dict) else f"{name} {x:.4f}"
        for name, x in scores.items()
        if x is not None
    )
