"""Training in PyTorch: a Hugging Face folder in, memory weights for ``convert`` out."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from ...config import AllMemConfig
from ...errors import AllMemError, SettingError
from ...files import read_json, replacing
from ..documents import open_sources
from ..initial import CALIBRATION, input_scales
from ..recipe import Recipe, Step, whole_numbers
from ..run import StepResult
from .hybrid import Hybrid, View, load_base
from .judge import Judge
from .loss import document_loss
from .measure import initialize, measure
from .optimizer import Optimizer

SIZES = "heads head_dim hidden_dim learning_rate max_update_norm values".split()


@dataclass(frozen=True)
class Settings:
    """The model, the sizes of its memory, and the result.

    Args:
        model (str): folder of the base model, as Hugging Face writes it.
        out (str): folder for the memory weights, the log and the checkpoint.
        memory (str): the ``out`` of another run, whose memory is trained further; its
            sizes are taken. Without one, and in layers that it does not have, training
            starts as ``initial.py`` describes.
        heads, head_dim, hidden_dim (int): sizes of the memory, see ``AllMemConfig``.
        learning_rate, max_update_norm (float): eta and Theta before training.
        output_eps (float): see ``AllMemConfig``; 0 for that of ``memory``, or 1e-6.
        values (str): the source of values, see ``AllMemConfig``.
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
        sizes: dict[str, Any] = {name: getattr(self, name) for name in SIZES}
        if self.memory:
            trained = trained_config(Path(self.memory))
            names = [*SIZES, "output_eps", "layers"]
            sizes = {name: getattr(trained, name) for name in names}
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


def trained_config(folder: Path) -> AllMemConfig:
    """The ``allmem`` settings of another run.

    Raises:
        AllMemError: if there are none.
    """
    file = folder / "config.json"
    try:
        return AllMemConfig.from_dict(read_json(file).get("allmem"))
    except SettingError as error:
        raise AllMemError(f"{file}: {error}") from error


class TorchTrainer:
    """See :class:`Trainer`. Processes of ``torchrun`` share the documents of a batch.

    Args:
        settings (Settings): model, sizes and result.
        recipe (Recipe): all other settings.

    Raises:
        AllMemError: if the model or a text is missing.
        SettingError: if the batch cannot be shared.
    """

    checkpoint = "checkpoint.pt"
    metric = "NLL beyond the window, facts found"

    def __init__(self, settings: Settings, recipe: Recipe):
        self.settings, self.recipe = settings, recipe
        self.folder = Path(settings.out)
        self.rank, self.processes = 0, 1
        if distributed.is_initialized():
            self.rank = distributed.get_rank()
            self.processes = distributed.get_world_size()
        self.leads = self.rank == 0
        if recipe.batch_size % self.processes:
            raise SettingError(
                f"a batch of {recipe.batch_size} cannot be shared by {self.processes} "
                "processes"
            )
        torch.manual_seed(recipe.seed)
        model, self.tokenizer = load_base(settings.model, settings.dtype)
        self.source, validation = open_sources(
            recipe.data, recipe.held_out, recipe.validation, self.tokenizer, recipe.seed
        )
        self.hybrid = Hybrid(model, settings.config(recipe))
        self.hybrid.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.parameters = self.hybrid.parameters()
        self._judge = Judge(self.hybrid, validation)
        if recipe.grad_checkpoint:
            self.hybrid.checkpoint_activations()

    def start(self) -> dict[str, Any]:
        count, length = CALIBRATION
        passages = [self.source.passage(length) for _ in range(count)]
        documents = torch.tensor(passages, device=self.hybrid.device)
        layers, output = measure(self.hybrid, documents)
        memory, recipe = self._trained_memory(), self.recipe
        if memory.keys() != self.parameters.keys():
            initialize(self.hybrid, layers, output, recipe.alpha, recipe.seed)
        self._load(memory)
        scales = input_scales(self.parameters, layers, output)
        self.optimizer = Optimizer(self.parameters, recipe, scales)
        return {"base": self._judge.base()} if self.leads else {}

    def _trained_memory(self) -> dict[str, Tensor]:
        """The memory of ``--memory``, in whole layers; nothing without the flag."""

        def layer(name: str) -> str:
            return name.partition(".self_attn.")[0]

        if not self.settings.memory:
            return {}
        file = Path(self.settings.memory) / "memory.safetensors"
        memory = load_file(file)
        layers = set(map(layer, memory))
        expected = {name for name in self.parameters if layer(name) in layers}
        if wrong := sorted(memory.keys() ^ expected):
            raise AllMemError(
                f"{file} does not fit: {wrong[0]} is missing, or not trained here"
            )
        return memory

    @torch.no_grad()
    def _load(self, memory: dict[str, Tensor]) -> None:
        for name, x in memory.items():
            self.parameters[name].copy_(x)

    def train_step(self, step: Step, rate: float) -> StepResult:
        view = View(step.window, step.sinks, step.chunk, memory=True)
        share = 1 / len(step.documents)
        totals = torch.zeros(2)  # loss, scored tokens
        for document in step.documents[self.rank :: self.processes]:
            loss = document_loss(self.hybrid, document, view, self.recipe.answer_weight)
            (share * loss).backward()
            scored = len(document.targets(step.window))
            totals += torch.tensor([share * loss.item(), scored])
        parameters = self.parameters.values()
        if self.processes > 1:
            for x in [*(x.grad for x in parameters), totals]:
                distributed.all_reduce(x)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip).item()
        self.optimizer.step(rate)
        return StepResult(totals[0].item(), int(totals[1]), norm)

    def judge(self) -> dict[str, Any]:
        return self._judge.memory()

    @torch.no_grad()
    def answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        # Everything is read again for every token, which needs no code for a state.
        config = self.hybrid.config
        view = View(config.window, config.sinks, config.chunk, memory=True)
        tokens, stop = list(prompt), self.tokenizer.eos_token_id
        while len(tokens) < len(prompt) + max_tokens and tokens[-1:] != [stop]:
            hidden = self.hybrid.hidden(
                torch.tensor([tokens], device=self.hybrid.device), view
            )
            tokens.append(int((hidden[0, -1] @ self.hybrid.head.T).argmax()))
        return tokens[len(prompt) :]

    def save(self, progress: dict[str, Any]) -> None:
        memory = {name: x.detach().clone() for name, x in self.parameters.items()}
        state = {**progress, "memory": memory, "optimizer": self.optimizer.state()}
        with replacing(self.folder / self.checkpoint) as file:
            torch.save(state, file)
        with replacing(self.folder / "memory.safetensors") as file:
            save_file(memory, file)
        with replacing(self.folder / "config.json") as file:
            config = {"allmem": asdict(self.hybrid.config)}
            file.write_text(json.dumps(config, indent=2) + "\n")

    def read_checkpoint(self, file: Path) -> tuple[dict[str, Any], Any]:
        saved = torch.load(file, self.hybrid.device, weights_only=True)
        return saved, saved

    def restore(self, state: dict[str, Any]) -> None:
        self._load(state["memory"])
        self.optimizer = Optimizer(self.parameters, self.recipe, {})
        self.optimizer.load(state["optimizer"])

    def wait(self) -> None:
        if self.processes > 1:
            distributed.barrier()

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()
