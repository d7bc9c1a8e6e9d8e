"""Training on MLX: a converted folder in, an mlx-lm adapter out."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from ...errors import SettingError, warn
from ...evaluation import likelihood
from ...evaluation.systems import Reader, System, systems
from ...families import largest_window, reach
from ...files import replacing
from ...loading import load
from ...model import Model
from ...variants import base_model
from ...weight_files import safetensors_header
from ..documents import Segment
from ..initial import calibration, input_scales
from ..optimizer import LOSSES
from ..recipe import Recipe, Step
from ..run import StepResult
from ..sources import open_sources
from . import student
from .measure import initialize, measure
from .optimizer import Arrays, Optimizer

JUDGED = 2  # validation documents


@dataclass(frozen=True)
class Settings:
    """The model and the result.

    Args:
        adapter_path (str): folder for the memory weights, the log and the checkpoint.
        model (str): model folder, or ORG/NAME of the Hugging Face hub. Default: the
            embedded SmolLM2-135M-Instruct. A trained memory is trained further; a fresh
            one is initialized first.
    """

    adapter_path: str
    model: str = ""


class MLXTrainer:
    """See :class:`Trainer`.

    Args:
        settings (Settings): model and result.
        recipe (Recipe): all other settings.

    Raises:
        AllMemError: if the model or a text is missing, or a setting does not fit the
            model.
    """

    leads = True
    checkpoint = "checkpoint.safetensors"
    metric = "NLL beyond the window"

    def __init__(self, settings: Settings, recipe: Recipe):
        self.settings, self.recipe = settings, recipe
        self.folder = Path(settings.adapter_path)
        self.model, self.tokenizer = load(settings.model or None)
        self.config, self.dtype = self.model.allmem, self.model.dtype
        chunk = self.config.chunk
        if chunk not in recipe.numbers("chunks"):
            warn(
                f"the model reads in chunks of {chunk} and is trained with "
                f"{recipe.chunks}: use --chunks {chunk}, or convert it with --chunk"
            )
        base = self.model.base_config
        sizes = ("windows", "sinks", "chunks")
        longest = sum(max(recipe.numbers(name)) for name in sizes)
        if (limit := reach(base)) is not None and longest > limit:
            raise SettingError(
                f"--windows, --sinks and --chunks must be at most {limit} together: "
                "beyond, the base computes otherwise"
            )
        largest = largest_window(base)
        if largest is not None and max(recipe.numbers("windows")) > largest:
            raise SettingError(f"--windows must be at most {largest}, the base's own")
        self.source, self.validation = open_sources(
            recipe.data, recipe.held_out, recipe.validation, self.tokenizer, recipe.seed
        )
        self.base = base_model(self.model)
        self.fresh = self.model.memory_is_off
        self.states: list[Any] = []
        student.make_trainable(self.model)

    def parameters(self) -> dict[str, mx.array]:
        """The trainable parameters, by name."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def start(self) -> dict[str, Any]:
        layers, output = measure(self.model, self.base, calibration(self.source))
        if self.fresh:
            recipe = self.recipe
            initialize(self.model, layers, output, recipe.alpha, recipe.seed)
        parameters = self.parameters()
        scales = input_scales(parameters, layers, output)
        self.optimizer = Optimizer(parameters, self.recipe, scales)
        return {}

    def train_step(self, step: Step, rate: float) -> StepResult:
        student.set_view(self.model, step.window, step.sinks, step.chunk)
        if not step.goes_on:
            self.states = [self.model.make_cache() for _ in step.segments]
        total, scored, share = 0.0, 0, 1 / len(step.segments)
        found: list[tuple[int, bool]] = []
        sums: dict[str, Arrays] = {loss: {} for loss in LOSSES}
        for i, segment in enumerate(step.segments):
            gradients, text, right = self._gradients(i, segment)
            for loss, grads in gradients.items():
                of_loss = sums[loss]
                for name, x in grads.items():
                    of_loss[name] = of_loss.get(name, mx.array(0.0)) + share * x
            mx.eval(sums)
            mx.clear_cache()
            total += share * text
            scored += len(segment.targets)
            found += segment.found(right)
        norms = {}
        moved = self.parameters()
        for loss, grads in sums.items():
            if grads:
                grads, norms[loss] = optim.clip_grad_norm(grads, self.recipe.clip)
                moved = self.optimizer.step(loss, moved, grads, rate)
        mx.eval(moved, self.optimizer.state())
        self.model.load_weights(list(moved.items()), strict=False)
        return StepResult(total, scored, norms["text"].item(), found)

    def _gradients(
        self, document: int, segment: Segment
    ) -> tuple[dict[str, Arrays], float, list[bool]]:
        """The gradients of the losses in a segment; the loss of its text; and whether
        each token of an answer is right. The document's state becomes that after it."""
        seen = segment.context + segment.tokens
        teacher = student.teacher_hidden(self.base, mx.array([seen]))
        teacher = teacher[:, len(segment.context) :]
        mx.eval(teacher)
        after: list[Any] = []
        gradients: dict[str, Arrays] = {}
        for loss in LOSSES if segment.answers else LOSSES[:1]:

            def losses(model: Model, first: str = loss) -> Any:
                text, answers, *rest = student.segment_losses(
                    model,
                    self.base,
                    segment,
                    teacher,
                    self.states[document],
                    after,
                    self.recipe.grad_checkpoint,
                )
                return (text if first == "text" else answers), text, *rest

            values, grads = nn.value_and_grad(self.model, losses)(self.model)
            gradients[loss] = dict(tree_flatten(grads))
            mx.eval(values, grads)
        _, text, right, arrays = values
        self.states[document] = student.with_arrays(after, arrays)
        return gradients, text.item(), right.tolist()

    def judge(self) -> dict[str, Any]:
        self._evaluating()
        numbers = self.recipe.numbers
        length = max(*numbers("lengths"), 2 * max(numbers("windows")))
        self.validation.random = random.Random(self.recipe.seed)
        documents = [self.validation.passage(length) for _ in range(JUDGED)]
        losses: likelihood.Losses = {
            system.name: [
                likelihood.losses(system, self.model, x, documents[i - 1])
                for i, x in enumerate(documents)
            ]
            for system in systems(self.model)
        }
        self.model.train()
        summary = likelihood.summary(losses, self.model.allmem.window, self.recipe.seed)
        return summary["beyond window"]["nll"]

    def answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        self._evaluating()
        reader = Reader(System("", self.model), self.model)
        reader.read(prompt[:-1])
        stops = set(self.tokenizer.eos_token_ids)
        tokens = reader.answer(prompt[-1:], max_tokens, stops)
        self.model.train()
        whole = len(tokens) < max_tokens
        return [*tokens, self.tokenizer.eos_token_id] if whole else tokens

    def _evaluating(self) -> None:
        """The model as it is evaluated: with the largest window."""
        self.model.eval()
        numbers = self.recipe.numbers
        window, sinks = max(numbers("windows")), max(numbers("sinks"))
        student.set_view(self.model, window, sinks, min(numbers("chunks")))

    def save(self, progress: dict[str, Any]) -> None:
        memory = self.parameters()
        arrays = memory | self.optimizer.state()
        self._write_arrays(self.checkpoint, arrays, {"run": json.dumps(progress)})
        cast = self.model.cast_predicate
        adapters = {
            name: x.astype(self.dtype) if cast(name) else x
            for name, x in memory.items()
        }
        self._write_arrays("adapters.safetensors", adapters, {"format": "mlx"})
        config = {
            "fine_tune_type": "full",
            "num_layers": len(self.model.layers),
            "allmem": asdict(self.config),
            **progress,
        }
        with replacing(self.folder / "adapter_config.json") as file:
            file.write_text(json.dumps(config, indent=2) + "\n")

    def _write_arrays(
        self, name: str, arrays: dict[str, mx.array], metadata: dict[str, str]
    ) -> None:
        with replacing(self.folder / name) as file:
            mx.save_safetensors(str(file), arrays, metadata)

    def read_checkpoint(self, file: Path) -> tuple[dict[str, Any], Any]:
        safetensors_header(file)
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        return json.loads(metadata["run"]), arrays

    def restore(self, state: dict[str, mx.array]) -> None:
        memory = [(name, state.pop(name)) for name in self.parameters()]
        self.model.load_weights(memory, strict=False)
        self.optimizer = Optimizer(self.parameters(), self.recipe, {})
        self.optimizer.load(state)

    def wait(self) -> None:
        pass

    def peak_memory(self) -> int:
        return mx.get_peak_memory()
