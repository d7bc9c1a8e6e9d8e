"""Distill a memory: forward KL to the frozen model's own full attention.

    python examples/distill_pytorch/train.py --model FOLDER --texts FOLDER --out FOLDER

The same command goes on where it was stopped. ``docs/distillation.md`` says what is
known of the settings.
"""

import json
import math
import os
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from base import best_device, load_base
from hybrid import TEACHER, Hybrid, View
from initial import initialize
from judge import Judge
from loss import forward_kl
from recipe import Recipe
from safetensors.torch import save_file
from texts import Document, Texts
from torch import Tensor

from allmem_mlx.command import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError

CALIBRATION = 6, 1024  # documents and tokens that the memory's start is measured on


def find_texts(recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """Files to train on and files to judge on.

    Raises:
        AllMemError: if there are none.
    """
    files = sorted(Path(recipe.texts).glob("*.txt"))
    validation = [f for f in files if f.name.startswith(names(recipe.validation))]
    apart = names(recipe.validation) + names(recipe.held_out)
    training = [f for f in files if not f.name.startswith(apart)]
    for name, found in ("train", training), ("validation", validation):
        if not found:
            raise AllMemError(f"{recipe.texts}: no text file (*.txt) for {name}")
    return training, validation


def names(listed: str) -> tuple[str, ...]:
    return tuple(x for x in listed.split(",") if x)


def load(recipe: Recipe) -> tuple[Hybrid, Any]:
    """The hybrid of a base model, and its tokenizer.

    Raises:
        AllMemError: if there is no such model.
    """
    model, tokenizer = load_base(recipe.model, recipe.dtype)
    config = AllMemConfig(
        heads=recipe.heads,
        head_dim=recipe.head_dim,
        hidden_dim=recipe.hidden_dim,
        window=max(recipe.numbers("windows")),
        sinks=max(recipe.numbers("sinks")),
        chunk=(chunk := min(recipe.numbers("chunks"))),
        fold=math.gcd(chunk, 64),
        learning_rate=recipe.learning_rate,
        max_update_norm=recipe.max_update_norm,
    )
    hybrid = Hybrid(model, config)
    hybrid.model.to(best_device())
    return hybrid, tokenizer


def make_optimizer(hybrid: Hybrid, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, with rates of their own for what moves on another scale."""
    groups: dict[str, list] = {
        "rate": [],
        "w0_rate": [],
        "alpha_rate": [],
        "gate_rate": [],
    }
    for name, parameter in hybrid.parameters().items():
        if name.endswith("proj.weight"):
            kind = "rate"
        elif ".w0_" in name:
            kind = "w0_rate"
        elif name.endswith("alpha"):
            kind = "alpha_rate"
        else:
            kind = "gate_rate"
        groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": getattr(recipe, kind),
                "weight_decay": recipe.weight_decay if kind == "rate" else 0.0,
            }
            for kind, parameters in groups.items()
        ],
        betas=(0.9, 0.95),
        eps=1e-10,  # gradients carry the factor alpha, which is small
    )


def draw_step(recipe: Recipe, texts: Texts, step: int) -> tuple[View, list[Document]]:
    """What a step trains on; it depends on the seed and the step alone."""
    draw = random.Random(f"{recipe.seed} {step}")
    view = View(
        window=draw.choice(recipe.numbers("windows")),
        sinks=draw.choice(recipe.numbers("sinks")),
        chunk=draw.choice(recipe.numbers("chunks")),
        memory=True,
    )
    if draw.random() < recipe.window_dropout:
        view = replace(view, window=view.chunk)
    length = draw.choice(recipe.numbers("lengths"))
    documents = []
    for _ in range(recipe.batch):
        kind, texts.random = draw.random(), draw
        if kind < recipe.repeats:
            documents.append(texts.repeat(length))
        elif kind < recipe.repeats + recipe.facts:
            documents.append(texts.facts(length))
        else:
            documents.append(texts.book(length))
    return view, documents


def document_loss(hybrid: Hybrid, document: Document, view: View) -> tuple[Tensor, int]:
    """KL in nats, the mean over the positions beyond the window, plus the mean over
    those that answer a question; and the number of the former."""
    tokens = torch.tensor([document.tokens], device=hybrid.device)
    with torch.no_grad():
        teacher = hybrid.hidden(tokens, TEACHER)[0]
    student = hybrid.hidden(tokens, view)[0]
    beyond = slice(view.window, -1)
    loss = forward_kl(student[beyond], teacher[beyond], hybrid.head)
    scored = student[beyond].shape[0]
    loss = loss / scored
    if answers := [i - 1 for answer in document.answers for i in answer]:
        told = forward_kl(student[answers], teacher[answers], hybrid.head)
        loss = loss + told / len(answers)
    return loss, scored


class Run:
    """A distillation: what it has learned so far, and where that is kept.

    Args:
        recipe (Recipe): its settings.

    Raises:
        AllMemError: if a file is missing, or the checkpoint found is of another recipe.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.out = recipe, Path(recipe.out)
        training, validation = find_texts(recipe)
        torch.manual_seed(recipe.seed)
        self.hybrid, tokenizer = load(recipe)
        self.texts = Texts(training, tokenizer, recipe.seed)
        self.judge = Judge(self.hybrid, Texts(validation, tokenizer, recipe.seed + 1))
        self.step, self.scored = 0, 0
        self.out.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(self.hybrid, recipe)
        if not self._resume():
            self._start()
        if recipe.checkpointing:
            self.hybrid.checkpoint_activations()

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _start(self) -> None:
        count, length = CALIBRATION
        passages = [self.texts.passage(length) for _ in range(count)]
        documents = torch.tensor(passages, device=self.hybrid.device)
        initialize(self.hybrid, documents, self.recipe.w0_std, self.recipe.alpha)
        self.log(recipe=asdict(self.recipe), base=self.judge.base())

    def _resume(self) -> bool:
        if not self.checkpoint.exists():
            return False
        saved = torch.load(self.checkpoint, self.hybrid.device, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise AllMemError(
                f"{self.checkpoint} is of a run with other settings; choose another "
                "--out, or give the same settings"
            )
        with torch.no_grad():
            for name, x in self.hybrid.parameters().items():
                x.copy_(saved["memory"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.scored = saved["step"], saved["scored"]
        return True

    def save(self) -> None:
        """Writes the checkpoint, and what ``convert --torch-path`` reads."""
        memory = {k: x.detach().clone() for k, x in self.hybrid.parameters().items()}
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "scored": self.scored,
            "memory": memory,
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        temporary = self.out / "memory.tmp"
        save_file(memory, temporary)
        os.replace(temporary, self.out / "memory.safetensors")
        block = {"allmem": asdict(self.hybrid.config)}
        (self.out / "config.json").write_text(json.dumps(block, indent=2) + "\n")

    def log(self, **entry: Any) -> None:
        """A line of JSON in ``log.jsonl``, and on the terminal."""
        line = json.dumps({"step": self.step, "scored": self.scored, **entry})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def train_step(self) -> None:
        recipe, start = self.recipe, time.monotonic()
        scale = recipe.scale(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = scale * group["peak"]
        view, documents = draw_step(recipe, self.texts, self.step)
        total = 0.0
        for document in documents:
            loss, scored = document_loss(self.hybrid, document, view)
            (loss / len(documents)).backward()
            total += loss.item() / len(documents)
            self.scored += scored
        trained = self.hybrid.parameters().values()
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.clip).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.log(
            loss=round(total, 4),
            window=view.window,
            chunk=view.chunk,
            length=len(documents[0].tokens),
            gradient=round(norm, 4),
            seconds=round(time.monotonic() - start, 2),
        )

    def train(self) -> None:
        """To the end, with checkpoints on the way."""
        recipe = self.recipe
        while self.step < recipe.steps:
            self.train_step()
            last = self.step == recipe.steps
            if last or self.step % recipe.every == 0:
                self.save()
            if last or self.step % recipe.evaluate == 0:
                self.log(judged=self.judge.memory())


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="train.py", description=__doc__.split("\n")[0])
    Recipe.add_flags(parser)
    return parser


def command(args: Any) -> None:
    settings = {k: v for k, v in vars(args).items() if k != "debug"}
    Run(Recipe(**settings)).train()


if __name__ == "__main__":
    run(configure_parser(), command)
