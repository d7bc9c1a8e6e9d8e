"""Distill a memory: train it, with its model frozen, towards the model's own full
attention.

The result is a folder for --adapter-path, of mlx-lm's commands too; `mlx_lm.fuse` makes
a model folder of it. The same command goes on where it was stopped.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from .cli.run import ArgumentParser, run
from .distillation import student
from .distillation.documents import open_sources
from .distillation.initial import CALIBRATION, input_scales
from .distillation.measure import initialize, measure
from .distillation.optimizer import Optimizer
from .distillation.recipe import (
    Recipe,
    Step,
    add_settings,
    draw_step,
    settings_of,
)
from .distillation.stage2 import collect, collected
from .errors import AllMemError, SettingError, reason, warn
from .evaluation import likelihood
from .evaluation.systems import Reader, System, systems
from .families import largest_window
from .files import replacing
from .loading import load
from .variants import base_model
from .weight_files import safetensors_header

JUDGED = 2  # documents that are judged on
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Settings:
    """What the recipe does not say.

    Args:
        adapter_path (str): folder for the memory weights, the log and the checkpoint.
        model (str): model folder, or ORG/NAME of the Hugging Face hub. Default: the
            embedded SmolLM2-135M-Instruct. A memory that was trained is trained on; a
            fresh one is first given what training starts from.
    """

    adapter_path: str
    model: str = ""


class Run:
    """A distillation: what it has learned so far, and where that is kept.

    Args:
        settings (Settings): its own settings.
        recipe (Recipe): the recipe.

    Raises:
        AllMemError: if the model or a text is missing, or the checkpoint found is of
            another run or damaged.
    """

    def __init__(self, settings: Settings, recipe: Recipe):
        self.settings, self.recipe = settings, recipe
        self.folder = Path(settings.adapter_path)
        self.model, self.tokenizer = load(settings.model or None)
        self.home = self.model.allmem
        self.dtype = self.model.dtype
        if self.home.chunk not in recipe.numbers("chunks"):
            warn(
                f"the model reads in chunks of {self.home.chunk}, and is trained with "
                f"{recipe.chunks}: give it the same with --chunk, here or in convert"
            )
        largest = largest_window(self.model.base_config)
        if largest is not None and max(recipe.numbers("windows")) > largest:
            raise SettingError(f"windows must not be above the base's own, {largest}")
        self.source, self.validation = open_sources(
            recipe.data, recipe.held_out, recipe.validation, self.tokenizer, recipe.seed
        )
        self.base = base_model(self.model)
        fresh = self.model.memory_is_off
        student.make_trainable(self.model)
        self.step, self.scored = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AllMemError(
                f"{self.folder} cannot be made: {reason(error)}"
            ) from None
        if (self.folder / CHECKPOINT).exists():
            self.optimizer = Optimizer(self.trained(), recipe, {})
            self._resume()
        else:
            scales = self._start(fresh)
            self.optimizer = Optimizer(self.trained(), recipe, scales)
            self.log(**self._described())
        if recipe.stage2:
            collect(self.answer, recipe, self.source, self.folder)
            self.source = collected(recipe, self.source, self.folder)

    def _start(self, fresh: bool) -> dict[str, mx.array]:
        count, length = CALIBRATION
        documents = [self.source.passage(length) for _ in range(count)]
        layers, output = measure(self.model, self.base, documents)
        if fresh:
            recipe = self.recipe
            initialize(self.model, layers, output, recipe.alpha, recipe.seed)
        scales = input_scales(self.trained(), layers, output)
        return {name: mx.array(S.astype(np.float32)) for name, S in scales.items()}

    def trained(self) -> dict[str, mx.array]:
        """What is trained, by name."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def _described(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "recipe": asdict(self.recipe)}

    def _resume(self) -> None:
        file = self.folder / CHECKPOINT
        safetensors_header(file)
        try:
            loaded: Any = mx.load(str(file), return_metadata=True)
            arrays, metadata = loaded
            saved = json.loads(metadata["run"])
            described = {key: saved[key] for key in self._described()}
            self.step, self.scored = saved["step"], saved["scored"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise AllMemError(f"{file} is no checkpoint: {reason(error)}") from None
        if described != self._described():
            raise AllMemError(
                f"{file} is of a run with other settings; choose another "
                "--adapter-path, or give the same settings"
            )
        memory = [(name, arrays.pop(name)) for name in self.trained()]
        self.model.load_weights(memory, strict=False)
        self.optimizer.load(arrays)

    def answer(self, prompt: list[int], most: int) -> list[int]:
        """What the student says, greedily."""
        self.model.eval()
        self._judged_view()
        reader = Reader(System("", self.model), self.model)
        reader.read(prompt[:-1])
        stops = set(self.tokenizer.eos_token_ids)
        said = reader.answer(prompt[-1:], most, stops)
        self.model.train()
        return said if len(said) == most else [*said, self.tokenizer.eos_token_id]

    def _judged_view(self) -> None:
        numbers = self.recipe.numbers
        window, sinks = max(numbers("windows")), max(numbers("sinks"))
        student.set_view(self.model, Step(window, sinks, min(numbers("chunks")), []))

    def save(self) -> None:
        """Writes the checkpoint, and what ``--adapter-path`` reads."""
        memory = self.trained()
        arrays = memory | self.optimizer.state()
        progress = {"step": self.step, "scored": self.scored, **self._described()}
        self._write_arrays(CHECKPOINT, arrays, {"run": json.dumps(progress)})
        cast = self.model.cast_predicate
        adapters = {
            name: x.astype(self.dtype) if cast(name) else x
            for name, x in memory.items()
        }
        self._write_arrays("adapters.safetensors", adapters, {"format": "mlx"})
        config = {
            "fine_tune_type": "full",
            "num_layers": len(self.model.layers),
            "allmem": asdict(self.home),
            **progress,
        }
        text = json.dumps(config, indent=2) + "\n"
        self._write("adapter_config.json", lambda file: file.write_text(text))

    def _write_arrays(
        self, name: str, arrays: dict[str, mx.array], metadata: dict[str, str]
    ) -> None:
        self._write(name, lambda file: mx.save_safetensors(str(file), arrays, metadata))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        file = self.folder / name
        try:
            with replacing(file) as temporary:
                write(temporary)
        except (OSError, RuntimeError) as error:
            raise AllMemError(f"{file} cannot be written: {reason(error)}") from None

    def log(self, **entry: Any) -> None:
        """A line of JSON in ``log.jsonl``."""
        line = json.dumps({"step": self.step, "scored": self.scored, **entry})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def train_step(self) -> None:
        """One step of the recipe."""
        recipe, start = self.recipe, time.perf_counter()
        drawn = draw_step(recipe, self.source, self.step)
        student.set_view(self.model, drawn)
        loss_and_grad = nn.value_and_grad(self.model, student.document_loss)
        total, scored, share = 0.0, 0, 1 / len(drawn.documents)
        grads: dict[str, mx.array] = {}
        for document in drawn.documents:
            tokens = mx.array([document.tokens])
            teacher = student.teacher_hidden(self.base, tokens)
            mx.eval(teacher)
            loss, grad = loss_and_grad(
                self.model,
                self.base,
                document,
                teacher,
                recipe.answer_weight,
                recipe.grad_checkpoint,
            )
            for name, x in dict(tree_flatten(grad)).items():
                grads[name] = grads.get(name, mx.array(0.0)) + share * x
            mx.eval(loss, grads)
            mx.clear_cache()
            total += share * loss.item()
            scored += len(document.targets(drawn.window))
        grads, norm = optim.clip_grad_norm(grads, recipe.clip)
        scale = recipe.scale(self.step)
        moved = self.optimizer.step(self.trained(), grads, scale)
        mx.eval(moved, self.optimizer.state())
        self.model.load_weights(list(moved.items()), strict=False)
        self.step += 1
        self.scored += scored
        seconds = time.perf_counter() - start
        self.log(
            loss=round(total, 4),
            window=drawn.window,
            chunk=drawn.chunk,
            length=len(drawn.documents[0].tokens),
            gradient=round(norm.item(), 4),
            seconds=round(seconds, 2),
        )
        read = sum(len(document.tokens) for document in drawn.documents)
        print(
            f"Iter {self.step}: Train loss {total:.3f}, Tokens/sec "
            f"{read / seconds:.1f}, Scored tokens {self.scored}, Peak mem "
            f"{mx.get_peak_memory() / 1e9:.3f} GB",
            flush=True,
        )

    def judge(self) -> None:
        """Likelihood of validation texts, beside all controls."""
        self.model.eval()
        self._judged_view()
        length = max(self.recipe.numbers("lengths"))
        self.validation.random = random.Random(self.recipe.seed)
        documents = [self.validation.passage(length) for _ in range(JUDGED)]
        found: likelihood.Losses = {}
        for system in systems(self.model):
            found[system.name] = [
                likelihood.losses(system, self.model, x, documents[i - 1])
                for i, x in enumerate(documents)
            ]
        self.model.train()
        summary = likelihood.summary(found, self.model.allmem.window, self.recipe.seed)
        nll = summary["beyond window"]["nll"]
        self.log(judged=nll)
        print(
            f"Iter {self.step}: Val NLL beyond the window: "
            + ", ".join(f"{name} {x:.4f}" for name, x in nll.items() if x is not None),
            flush=True,
        )

    def train(self) -> None:
        """To the end, with checkpoints on the way."""
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
        print(f"Saved the memory to {self.folder}; use it with --adapter-path")


def setup_arg_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.distill", description=__doc__)
    add_settings(parser, Settings)
    add_settings(parser, Recipe)
    return parser


def distill(args: Any) -> None:
    Run(settings_of(args, Settings), settings_of(args, Recipe)).train()


def main() -> None:
    run(setup_arg_parser(), distill)


if __name__ == "__main__":
    main()
