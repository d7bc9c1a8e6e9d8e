"""What a model is and needs, in a few lines, before it has read anything."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..families import attention_windows
from ..model import Model
from . import flops, room
from .flops import Sizes
from .room import Machine

UNTRAINED, TRAINED, UNKNOWN = "untrained", "trained", "unknown"
ATTENTION = "attention over window and sinks"
# Layers whose state is no memory: it holds a few tokens.
SHORT = ("convolution",)
FOUR_BITS = 4.5 / 8  # bytes of a weight, with its share of a group's scale and bias
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def amount(size: float) -> str:
    """A number of bytes in words."""
    for unit, name in UNITS:
        if size >= 0.9995 * unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} bytes"


def memory_of(model: Model) -> str:
    """Whether a model has a trained memory, if its weights are there."""
    return UNTRAINED if model.memory_is_off else TRAINED


@dataclass(frozen=True)
class Overview:
    """What a model is and needs.

    Args:
        layers (dict): how many there are of each kind; first the hybrids, then those
            that are as in the base.
        sizes (Sizes): of the model.
        experts (tuple): experts of a token, and all of a layer; ``None`` without any.
        quantized (bool): whether its weights are packed.
        memory (str): ``"untrained"``, ``"trained"`` or ``"unknown"``.
        source (str): where its memory was imported from, if it was.
        recurrent (str): the kind of layers that remember by themselves, if there are
            such.
        machine (Machine): where it is to run.
        limit (int): see :func:`room.limit`.
    """

    layers: dict[str, int]
    sizes: Sizes
    experts: tuple[int, int] | None
    quantized: bool
    memory: str
    source: str | None
    recurrent: str | None
    machine: Machine
    limit: int | None

    @classmethod
    def of(
        cls, model: Model, memory: str, machine: Machine, source: str | None = None
    ) -> "Overview":
        """
        Args:
            model (Model): a hybrid, none of whose weights is evaluated.
            memory (str): what is known of its memory.
            machine (Machine): where it is to run.
            source (str): where its memory was imported from, if it was.
        """
        recurrent = model.family.recurrent
        return cls(
            layers=kinds_of_layers(model),
            sizes=Sizes.of(model),
            experts=flops.experts(model),
            quantized=any("scales" in module for module in model.modules()),
            memory=memory,
            source=source,
            recurrent=None if recurrent in SHORT else recurrent,
            machine=machine,
            limit=room.limit(model),
        )

    @property
    def largest(self) -> int | None:
        """The window to recommend; see :func:`room.largest`."""
        return room.largest(self.sizes, self.limit, self.machine, self._may_remember)

    @property
    def _may_remember(self) -> bool:
        """Whether there may be a memory, whose state takes room."""
        return self.memory != UNTRAINED

    def fits(self, window: int) -> bool:
        """Whether the machine has room for the model with a window."""
        return room.fits(self.sizes, window, self.machine, self._may_remember)

    @property
    def is_too_large(self) -> bool:
        """Whether the machine has no room for the model with any useful window."""
        return not self.fits(self._smallest)

    @property
    def _smallest(self) -> int:
        return min(self.sizes.config.window, room.SMALLEST)

    @property
    def state(self) -> int:
        """Bytes of the state, without a memory."""
        return flops.ring_bytes(self.sizes) + self.sizes.recurrent_state

    @property
    def record(self) -> dict[str, Any]:
        """The same as numbers."""
        sizes = self.sizes
        return {
            "layers": self.layers,
            "weights": sizes.all_weights + sizes.memory_weights,
            "weights of a token": sizes.weights,
            "experts": self.experts,
            "memory": self.memory,
            "state": self.state,
            "state with a memory": self.state + flops.memory_bytes(sizes),
            "growth of full attention": sizes.kv_of_a_token,
            "window": sizes.config.window,
            "largest window": self.largest,
            "machine": self.machine.memory,
        }

    def lines(self) -> Iterator[str]:
        """The overview as text."""
        yield f"Layers: {self._describe_layers()}"
        yield f"Weights: {self._describe_weights()}"
        yield f"State: {self._describe_state()}"
        yield f"Memory: {self._describe_memory()}"
        yield f"Window: {self._describe_window()}"

    def _describe_layers(self) -> str:
        texts = {kind: f"{count} {kind}" for kind, count in self.layers.items()}
        hybrids = [text for kind, text in texts.items() if kind.startswith(ATTENTION)]
        others = [text for text in texts.values() if text not in hybrids]
        found = ", ".join(hybrids)
        return f"{found}; as in the base: {', '.join(others)}" if others else found

    def _describe_weights(self) -> str:
        sizes = self.sizes
        total = amount(sizes.all_weights + sizes.memory_weights)
        text = f"{total}, {amount(sizes.memory_weights)} of it the memory's"
        if self.experts:
            used, count = self.experts
            own = amount(sizes.weights)
            text += f"; a token uses {own} ({used} of {count} experts)"
        if not self.is_too_large:
            return text
        advice = "choose a smaller model"
        if self.fits_quantized:
            advice = f"quantise with -q, or {advice}"
        most = amount(self.machine.usable)
        text += f"; more than the {most} that {self.machine} leaves a model"
        return f"{text}: {advice}"

    @property
    def fits_quantized(self) -> bool:
        """Whether the machine has room for the model once it has 4 bits a weight."""
        if self.quantized:
            return False
        weights = round(self.sizes.all_weights * FOUR_BITS / self.sizes.itemsize)
        packed = replace(self, sizes=replace(self.sizes, all_weights=weights))
        return packed.fits(self._smallest)

    def _describe_state(self) -> str:
        memory = flops.memory_bytes(self.sizes)
        total = amount(self.state + memory)
        if self.memory == TRAINED:
            text = f"at most {total} at any length, {amount(memory)} of it the memory's"
        else:
            state = amount(self.state)
            text = f"{state} at any length, at most {total} with a trained memory"
        growth = amount(self.sizes.kv_of_a_token)
        return f"{text}; full attention adds {growth} a token"

    def _describe_memory(self) -> str:
        count = self.sizes.memory_layers
        where = f"in {count} layer" + "s" * (count != 1)
        text = {
            UNTRAINED: "none, as it is not trained",
            TRAINED: f"trained, {where}",
            UNKNOWN: f"{where}; its weights say whether it is trained",
        }[self.memory]
        if self.source:
            text = f"imported from {self.source}, {where}"
            if self.memory == UNTRAINED:
                text += ", and off, as alpha is 0"
        places = ["an archive (--archive)"]
        if self.recurrent:
            places.insert(0, f"the {self.recurrent} layers")
        if self.memory == TRAINED:
            places.insert(0, "it")
        return f"{text}; remembers through {_listed(places)}"

    def _describe_window(self) -> str:
        c, largest = self.sizes.config, self.largest
        text = f"{c.window:,} and {c.sinks:,} sinks"
        if self.is_too_large:
            return text
        if not self.fits(c.window):
            advice = f"; --window {largest} fits" if largest else ""
            return f"{text}, too much for {self.machine}{advice}"
        if self.memory == TRAINED or self.limit is None:
            return text  # a memory is trained beside a window
        if c.window > self.limit:
            return (
                f"{text}, too much for the base, which was trained for no position "
                f"beyond {self.limit + c.sinks + c.chunk:,} (sinks + window + chunk)"
            )
        if largest and largest > c.window:
            return f"{text}; the base and {self.machine} allow {largest:,} (--window)"
        return f"{text}, as much as the base and {self.machine} allow"


def _listed(names: list[str]) -> str:
    """Names as a sentence has them."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def reading_command(model: str | None) -> str:
    """What to type next with a converted model, by its folder or repository."""
    named = "" if model is None else f" --model {shlex.quote(model)}"
    return f"allmem_mlx chat{named} (/read book.txt, then ask)"


def kinds_of_layers(model: Model) -> dict[str, int]:
    """How many layers there are of each kind, first those over window and sinks."""
    windows, attentions = attention_windows(model.base_config), model.attentions
    kinds: Counter[str] = Counter()
    for i, layer in enumerate(model.layers):
        parts = []
        if (attention := attentions.get(i)) is not None:
            window = windows[i]
            kind = ATTENTION if window is None else f"sliding attention ({window:,})"
            parts.append(kind + " with another layer's keys" * attention.borrows)
        if flops.recurrent_part(layer) is not None:
            parts.append(model.family.recurrent or "recurrent")
        kinds[" beside ".join(parts) or "without a state"] += 1
    return dict(sorted(kinds.items(), key=lambda x: not x[0].startswith(ATTENTION)))
