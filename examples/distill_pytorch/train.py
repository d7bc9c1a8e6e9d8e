"""Distill a memory: forward KL to the frozen model's own full attention.

    python examples/distill_pytorch/train.py --model FOLDER --data FOLDER --out FOLDER

The same command goes on where it was stopped. Under ``torchrun --nproc-per-node N`` the
documents of a step are shared by N processes. ``docs/distillation.md`` says what is
known of the settings.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from base import best_device, load_base
from hybrid import TEACHER, Hybrid, View
from initial import initialize, measure
from judge import Judge
from loss import forward_kl
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.documents import Document, open_sources
from allmem_mlx.distillation.initial import CALIBRATION, input_scales
from allmem_mlx.distillation.recipe import (
    Recipe,
    add_settings,
    draw_step,
    is_relative,
    settings_of,
    whole_numbers,
)
from allmem_mlx.distillation.stage2 import collect, collected
from allmem_mlx.errors import AllMemError
from allmem_mlx.files import replacing


@dataclass(frozen=True)
class Settings:
    """What the recipe does not say.

    Args:
        model (str): folder of the base model, as Hugging Face writes it.
        out (str): folder for the memory weights, the log and the checkpoint.
        memory (str): such a folder of another run, whose memory is trained on; its
            sizes are taken. Without one, and in layers that it does not have, training
            starts as ``initial.py`` says.
        heads, head_dim, hidden_dim (int): sizes of the memory, see ``AllMemConfig``.
        learning_rate, max_update_norm (float): eta and Theta before training.
        output_eps (float): see ``AllMemConfig``; 0 for that of ``memory``, or 1e-6.
        values (str): what values are made of, see ``AllMemConfig``.
        layers (str): those that have a memory, separated by commas, see
            ``AllMemConfig``; empty for those of ``memory``, or all.
        dtype (str): of the frozen base. The memory is float32.
    """

    model: str
    out: str
    memory: str = ""
    heads: int = 3
    head_dim: int = 64
    hidden_dim: int = 256
    learning_rate: float = 0.01
    max_update_norm: float = 3.0
    output_eps: float = 0.0
    values: str = "hidden"
    layers: str = ""
    dtype: str = "bfloat16"

    def config(self, recipe: Recipe) -> AllMemConfig:
        """The hybrid layer's configuration."""
        chunk = min(recipe.numbers("chunks"))
        sizes: dict[str, Any] = {
            "heads": self.heads,
            "head_dim": self.head_dim,
            "hidden_dim": self.hidden_dim,
            "learning_rate": self.learning_rate,
            "max_update_norm": self.max_update_norm,
            "values": self.values,
        }
        if self.memory:
            block = read_block(Path(self.memory))
            sizes = {name: block[name] for name in [*sizes, "output_eps", "layers"]}
        if self.output_eps:
            sizes["output_eps"] = self.output_eps
        if self.layers:
            sizes["layers"] = whole_numbers("layers", self.layers)
        return AllMemConfig(
            **sizes,
            window=max(recipe.numbers("windows")),
            sinks=max(recipe.numbers("sinks")),
            chunk=chunk,
            fold=math.gcd(chunk, 64),
        )


def read_block(folder: Path) -> dict[str, Any]:
    """The ``allmem`` block of a run.

    Raises:
        AllMemError: if there is none.
    """
    try:
        block = json.loads((folder / "config.json").read_text())["allmem"]
        return asdict(AllMemConfig.from_dict(block))
    except (OSError, ValueError, KeyError) as error:
        raise AllMemError(f"{folder}/config.json has no allmem block") from error


class Optimizer:
    """Adam, with a rate of its own for each parameter.

    Args:
        parameters (dict): what is trained.
        recipe (Recipe): has the rates.
        scales (dict): of :func:`input_scales`.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        recipe: Recipe,
        scales: dict[str, Tensor],
    ):
        self.parameters, self.recipe, self.scales = parameters, recipe, scales
        self.sizes = {
            name: self._size(name, x.detach())
            for name, x in parameters.items()
            if is_relative(name)
        }
        self.adam = torch.optim.Adam(
            [
                {"params": [x], "peak": recipe.peak(name)}
                for name, x in parameters.items()
            ],
            betas=(0.9, 0.95),
            eps=1e-10,  # gradients carry the factor alpha, which is small
        )

    def _size(self, name: str, x: Tensor) -> Tensor:
        if name in self.scales:
            x = torch.linalg.solve(self.scales[name], x, left=False)
            return x.square().mean(1, keepdim=True).sqrt()
        return x.square().mean().sqrt()

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Moves all parameters along their gradients.

        Args:
            scale (float): of all learning rates.
        """
        before = {name: x.clone() for name, x in self.parameters.items()}
        for name, S in self.scales.items():
            self.parameters[name].grad @= S
        for group in self.adam.param_groups:
            group["lr"] = scale * group["peak"]
        self.adam.step()
        self.adam.zero_grad()
        for name, size in self.sizes.items():
            x = self.parameters[name]
            moved = size * (x - before[name])
            if name in self.scales:
                moved = moved @ self.scales[name]
            x.copy_(before[name] + moved)

    def state(self) -> dict[str, Any]:
        return {
            "adam": self.adam.state_dict(),
            "sizes": self.sizes,
            "scales": self.scales,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.sizes, self.scales = state["sizes"], state["scales"]


def document_loss(
    hybrid: Hybrid, document: Document, view: View, answer_weight: float
) -> tuple[Tensor, int]:
    """KL in nats, the mean over the positions beyond the window, plus the weighted
    mean over those that answer a question; and the number of the former."""
    tokens = torch.tensor([document.tokens], device=hybrid.device)
    with torch.no_grad():
        teacher = hybrid.hidden(tokens, TEACHER)[0]
    student = hybrid.hidden(tokens, view)[0]

    def mean(targets: list[int]) -> Tensor:
        total = forward_kl(student[targets], teacher[targets], hybrid.head)
        return total / len(targets)

    beyond, answers = document.targets(view.window), document.answer_targets()
    loss = mean(beyond)
    if answers:
        loss = loss + answer_weight * mean(answers)
    return loss, len(beyond)


class Run:
    """A distillation: what it has learned so far, and where that is kept.

    Args:
        settings (Settings): its own settings.
        recipe (Recipe): the recipe.

    Raises:
        AllMemError: if a file is missing, or the checkpoint found is of another recipe.
    """

    def __init__(self, settings: Settings, recipe: Recipe):
        self.settings, self.recipe, self.out = settings, recipe, Path(settings.out)
        self.rank, self.processes = 0, 1
        if distributed.is_initialized():
            self.rank = distributed.get_rank()
            self.processes = distributed.get_world_size()
        if recipe.batch_size % self.processes:
            raise AllMemError(
                f"a batch of {recipe.batch_size} cannot be shared by {self.processes} "
                "processes"
            )
        torch.manual_seed(recipe.seed)
        model, tokenizer = load_base(settings.model, settings.dtype)
        self.source, validation = open_sources(
            recipe.data, recipe.held_out, recipe.validation, tokenizer, recipe.seed
        )
        self.hybrid = Hybrid(model, settings.config(recipe))
        self.hybrid.model.to(best_device())
        self.judge = Judge(self.hybrid, validation)
        self.step, self.scored = 0, 0
        self.out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.optimizer = Optimizer(self.hybrid.parameters(), recipe, {})
            self._resume()
        else:
            scales = self._start()
            self.optimizer = Optimizer(self.hybrid.parameters(), recipe, scales)
        if recipe.stage2:
            if self.leads:
                collect(self.answer, recipe, self.source, self.out)
            if self.processes > 1:
                distributed.barrier()
            self.source = collected(recipe, self.source, self.out)
        if recipe.grad_checkpoint:
            self.hybrid.checkpoint_activations()

    @torch.no_grad()
    def answer(self, prompt: list[int], most: int) -> list[int]:
        """What the student says, greedily. It reads everything again for every token,
        which needs no code for a state."""
        config = self.hybrid.config
        view = View(config.window, config.sinks, config.chunk, memory=True)
        tokens, stop = list(prompt), self.source.tokenizer.eos_token_id
        while len(tokens) < len(prompt) + most and tokens[-1:] != [stop]:
            hidden = self.hybrid.hidden(
                torch.tensor([tokens], device=self.hybrid.device), view
            )
            tokens.append(int((hidden[0, -1] @ self.hybrid.head.T).argmax()))
        return tokens[len(prompt) :]

    @property
    def leads(self) -> bool:
        """Whether this process, of those that train together, keeps the books."""
        return self.rank == 0

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _start(self) -> dict[str, Tensor]:
        count, length = CALIBRATION
        passages = [self.source.passage(length) for _ in range(count)]
        documents = torch.tensor(passages, device=self.hybrid.device)
        layers, output = measure(self.hybrid, documents)
        start, recipe = self._memory_of_another_run(), self.recipe
        if start.keys() != self.hybrid.parameters().keys():
            initialize(self.hybrid, layers, output, recipe.alpha, recipe.seed)
        self._load(self.hybrid.parameters() | start)
        if self.leads:
            self.log(**self._described(), base=self.judge.base())
            self.log(judged=self.judge.memory())
        scales = input_scales(self.hybrid.parameters(), layers, output)
        return {
            name: torch.from_numpy(S).to(documents.device).float()
            for name, S in scales.items()
        }

    def _described(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "recipe": asdict(self.recipe)}

    def _memory_of_another_run(self) -> dict[str, Tensor]:
        """That of ``--memory``, whole layers of what is trained; or nothing."""

        def layer(name: str) -> str:
            return name.partition(".self_attn.")[0]

        if not self.settings.memory:
            return {}
        file = Path(self.settings.memory) / "memory.safetensors"
        memory = load_file(file)
        known = set(map(layer, memory))
        expected = {k for k in self.hybrid.parameters() if layer(k) in known}
        if wrong := sorted(memory.keys() ^ expected):
            raise AllMemError(
                f"{file} does not fit: {wrong[0]} is missing, or not trained here"
            )
        return memory

    @torch.no_grad()
    def _load(self, memory: dict[str, Tensor]) -> None:
        for name, x in self.hybrid.parameters().items():
            x.copy_(memory[name])

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, self.hybrid.device, weights_only=True)
        if any(saved.get(key) != value for key, value in self._described().items()):
            raise AllMemError(
                f"{self.checkpoint} is of a run with other settings; choose another "
                "--out, or give the same settings"
            )
        self._load(saved["memory"])
        self.optimizer.load(saved["optimizer"])
        self.step, self.scored = saved["step"], saved["scored"]

    def save(self) -> None:
        """Writes the checkpoint, and what ``convert --torch-path`` reads."""
        memory = {k: x.detach().clone() for k, x in self.hybrid.parameters().items()}
        state = {
            **self._described(),
            "step": self.step,
            "scored": self.scored,
            "memory": memory,
            "optimizer": self.optimizer.state(),
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)
        with replacing(self.out / "memory.safetensors") as temporary:
            save_file(memory, temporary)
        block = {"allmem": asdict(self.hybrid.config)}
        (self.out / "config.json").write_text(json.dumps(block, indent=2) + "\n")

    def log(self, **entry: Any) -> None:
        """A line of JSON in ``log.jsonl``, and on the terminal."""
        if not self.leads:
            return
        line = json.dumps({"step": self.step, "scored": self.scored, **entry})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def train_step(self) -> None:
        recipe, start = self.recipe, time.monotonic()
        drawn = draw_step(recipe, self.source, self.step)
        view = View(drawn.window, drawn.sinks, drawn.chunk, memory=True)
        documents = drawn.documents
        totals = torch.zeros(2)  # loss, scored tokens
        for document in documents[self.rank :: self.processes]:
            loss, scored = document_loss(
                self.hybrid, document, view, recipe.answer_weight
            )
            (loss / len(documents)).backward()
            totals += torch.tensor([loss.item() / len(documents), scored])
        trained = self.hybrid.parameters().values()
        if self.processes > 1:
            for x in [*(x.grad for x in trained), totals]:
                distributed.all_reduce(x)
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.clip).item()
        self.optimizer.step(recipe.scale(self.step))
        self.step += 1
        self.scored += int(totals[1])
        self.log(
            loss=round(totals[0].item(), 4),
            window=view.window,
            chunk=view.chunk,
            length=len(documents[0].tokens),
            gradient=round(norm, 4),
            seconds=round(time.monotonic() - start, 2),
        )

    def train(self) -> None:
        """To the end, with checkpoints on the way."""
        recipe = self.recipe
        while self.step < recipe.iters:
            self.train_step()
            last = self.step == recipe.iters
            if not self.leads:
                continue
            if last or self.step % recipe.save_every == 0:
                self.save()
            if last or self.step % recipe.steps_per_eval == 0:
                self.log(judged=self.judge.memory())


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="train.py", description=__doc__.split("\n")[0])
    add_settings(parser, Settings)
    add_settings(parser, Recipe)
    return parser


def command(args: Any) -> None:
    if distributed.is_torchelastic_launched():
        # The first process judges and collects while the others wait.
        distributed.init_process_group(timeout=timedelta(days=1))
    Run(settings_of(args, Settings), settings_of(args, Recipe)).train()


if __name__ == "__main__":
    run(configure_parser(), command)
