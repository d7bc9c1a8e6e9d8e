"""Training in PyTorch: a Hugging Face folder in, memory weights for ``convert`` out."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from ...config import AllMemConfig
from ...errors import AllMemError, SettingError
from ...files import read_json, replacing
from ..initial import calibration, input_scales
from ..recipe import Recipe, Step, whole_numbers
from ..run import StepResult
from ..sources import open_sources
from .hybrid import Hybrid, State, View, load_base
from .judge import Judge
from .loss import segment_losses
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
        updates (str): what is trained while reading, see ``AllMemConfig``; empty for
            that of ``memory``, or all.
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
    updates: str = ""
    layers: str = ""
    dtype: str = "bfloat16"

    def config(self, recipe: Recipe) -> AllMemConfig:
        """The hybrid layer's configuration."""
        chunk = min(recipe.numbers("chunks"))
        sizes: dict[str, Any] = {name: getattr(self, name) for name in SIZES}
        if self.memory:
            trained = trained_config(Path(self.memory))
            names = [*SIZES, "output_eps", "updates", "layers"]
            sizes = {name: getattr(trained, name) for name in names}
        for name in ("output_eps", "updates"):
            if value := getattr(self, name):
                sizes[name] = value
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
        self.state = State()
        if recipe.grad_checkpoint:
            self.hybrid.checkpoint_activations()

    def start(self) -> dict[str, Any]:
        texts = calibration(self.source)
        documents = torch.tensor(texts, device=self.hybrid.device)
        layers, output = measure(self.hybrid, documents)
        memory, recipe = self._trained_memory(), self.recipe
        if memory.keys() != self.parameters.keys():
            initialize(self.hybrid, layers, output, recipe.alpha, recipe.seed)
        self.hybrid.load(memory)
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

    def train_step(self, step: Step, rate: float) -> StepResult:
        if not step.goes_on:
            self.state = State()
        view = View(step.window, step.sinks, step.chunk, memory=True)
        own = step.segments[self.rank :: self.processes]
        losses, self.state = segment_losses(self.hybrid, own, view, self.state)
        scored = sum(len(x.targets) for x in own)
        everyone = self._gathered((losses.text.item(), scored, losses.found))
        loss = sum(x for x, _, _ in everyone) / self.processes
        found = [x for _, _, own_found in everyone for x in own_found]
        grads, norm = self._gradient(losses.text, keep=losses.answers is not None)
        answered = self._gradient(losses.answers)[0] if found else None
        self.optimizer.step("text", grads, rate)
        if answered:
            self.optimizer.step("answers", answered, rate)
        return StepResult(loss, sum(x for _, x, _ in everyone), norm, found)

    def _gathered(self, x: Any) -> list[Any]:
        """The value of every process."""
        if self.processes == 1:
            return [x]
        gathered = [None] * self.processes
        distributed.all_gather_object(gathered, x)
        return gathered

    def _gradient(
        self, loss: Tensor | None, keep: bool = False
    ) -> tuple[dict[str, Tensor], float]:
        """The gradient of the mean loss of all processes, clipped, and its norm.

        Args:
            loss (Tensor): of this process; ``None`` for 0.
            keep (bool): whether another gradient of the same graph will be taken.
        """
        parameters = list(self.parameters.values())
        grads = [torch.zeros_like(x) for x in parameters]
        if loss is not None:
            grads = list(
                torch.autograd.grad(
                    loss / self.processes,
                    parameters,
                    retain_graph=keep,
                    materialize_grads=True,
                )
            )
        if self.processes > 1:
            for x in grads:
                distributed.all_reduce(x)
        norm = nn.utils.get_total_norm(grads)
        factor = (self.recipe.clip / (norm + 1e-6)).clamp(max=1)
        names = zip(self.parameters, grads, strict=True)
        return {name: factor * x for name, x in names}, norm.item()

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
        self.hybrid.load(state["memory"])
        self.optimizer = Optimizer(self.parameters, self.recipe, {})
        self.optimizer.load(state["optimizer"])

    def wait(self) -> None:
        if self.processes > 1:
            distributed.barrier()

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()
