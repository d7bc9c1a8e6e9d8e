"""The systems that are compared: a model, its base, and the controls.

They share their weights, and differ in what they can know of the tokens that left the
window.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from ..cache import attention_caches, recurrent_caches
from ..memory.layer import MemoryState
from ..model import Model
from ..variants import base_model, frozen_model, matched_window, window_model

FULL = "full attention"
WINDOW = "window + sinks"
ALLMEM = "AllMem"
NEVER = "never written"
OTHER = "another document"
MATCHED = "matched window"
NAMES = (FULL, WINDOW, ALLMEM, NEVER, OTHER, MATCHED)

# The columns with passages; see columns.py.
ALLMEM_PASSAGES = "AllMem + passages"
WINDOW_PASSAGES = "window + sinks + passages"
FULL_PASSAGES = "full attention + passages"
PASSAGES_ONLY = "passages only"
ORACLE = "oracle passage"
RANDOM = "random passage"
OTHERS = "another document's"
CLOSED = "closed book"

LOGITS = 2**26  # logits that exist at once, at most


@dataclass(frozen=True)
class System:
    """A model that is compared.

    Args:
        name (str): one of the names above.
        model (nn.Module): any mlx-lm model.
        limit (int): tokens that it can read; ``None`` for any number.
        borrows (bool): ``True`` if its memory is that of another document.
    """

    name: str
    model: nn.Module
    limit: int | None = None
    borrows: bool = False


def systems(model: Model) -> list[System]:
    """The model and its comparisons, in the order of the tables.

    Full attention reads at most the ``max_position_embeddings`` of the base.
    """
    frozen = frozen_model(model)
    limit = model.base_config.get("max_position_embeddings")
    return [
        System(FULL, base_model(model), limit=limit),
        System(WINDOW, window_model(model, model.allmem.window)),
        System(ALLMEM, model),
        System(NEVER, frozen),
        System(OTHER, frozen, borrows=True),
        System(MATCHED, window_model(model, matched_window(model))),
    ]


def blocks(tokens: Sequence[int], model: Model) -> Iterator[list[int]]:
    """Cuts a document as the model does, into parts with few logits.

    Args:
        tokens (list): ids, from the start of the document.
        model (Model): the hybrid.
    """
    limit, start = max(1, LOGITS // model.base_config["vocab_size"]), 0
    for size in model.allmem.cuts(0, len(tokens)):
        part = math.ceil(size / math.ceil(size / limit))  # parts of about one size
        for first in range(start, start + size, part):
            yield list(tokens[first : min(first + part, start + size)])
        start += size


class Reader:
    """A system that reads one document.

    Args:
        system (System): the system.
        model (Model): the hybrid, which has the chunk grid.
        other (list): the other document, for a system that borrows its memory. It is
            read at the same pace, so that both memories are of the same age.

    Raises:
        ValueError: if a system that borrows has no other document.
    """

    def __init__(self, system: System, model: Model, other: Sequence[int] = ()):
        if system.borrows and not other:
            raise ValueError(f"{system.name} needs another document")
        self.system, self.model = system, model
        self.cache: list[Any] = make_prompt_cache(system.model)
        self._tokens = 0
        self._other = list(other) if system.borrows else []
        self._lender = model.make_cache() if self._other else []

    def _borrow(self) -> None:
        layers = attention_caches(self.cache), attention_caches(self._lender)
        for layer, lender in zip(*layers, strict=False):
            if layer.memory and lender.memory:
                weights = MemoryState.from_arrays(lender.memory).weights
                state = MemoryState.from_arrays(layer.memory)
                layer.memory = state._replace(weights=weights).arrays()

    def step(self, block: list[int]) -> mx.array:
        """Reads tokens, a block of :func:`blocks`.

        Returns:
            mx.array: logits, ``[T, vocabulary]``.
        """
        if not self._lender:
            return self._step(block)
        # Another memory is borrowed in every chunk.
        chunk, logits = self.model.allmem.chunk, []
        while block:
            size = chunk - self._tokens % chunk
            logits.append(self._step(block[:size]))
            block = block[size:]
        return mx.concatenate(logits)

    def _step(self, block: list[int]) -> mx.array:
        self._borrow()
        logits = self.system.model(mx.array(block)[None], cache=self.cache)[0]
        lent = self._other[self._tokens : self._tokens + len(block)]
        if lent:
            self.model(mx.array(lent)[None], cache=self._lender)
        mx.eval([c.state for c in [*self.cache, *self._lender]])
        self._tokens += len(block)
        return logits

    def read(self, tokens: Sequence[int]) -> None:
        """Reads the beginning of a document."""
        for block in blocks(tokens, self.model):
            self.step(block)
            mx.clear_cache()

    def read_end(self, tokens: Sequence[int]) -> None:
        """Reads a document into a system that only has windows and sinks, without the
        tokens that it cannot know at the end: whole blocks between the sinks and the
        reach of all layers' windows are skipped. Positions are those of the whole
        document. Recurrent layers may know all tokens; nothing is then skipped.
        """
        if recurrent_caches(self.cache):
            self.read(tokens)
            return
        block = self.model.allmem.block
        first = -(-max(1, self.model.allmem.sinks) // block) * block
        attentions = self.system.model.attentions.values()
        reach = sum(attention.config.window for attention in attentions)
        skipped = max(0, len(tokens) - first - reach) // block * block
        self.read(tokens[:first])
        for layer in attention_caches(self.cache):
            layer.ring.offset += skipped
        self._tokens += skipped
        self.read(tokens[first + skipped :])

    def answer(
        self, prompt: Sequence[int], max_tokens: int, stops: set[int]
    ) -> list[int]:
        """Answers a prompt greedily, and leaves the state as it was.

        Args:
            prompt (list): token ids, at least one.
            max_tokens (int): tokens of the answer at most.
            stops (set): ids that end an answer; they are not part of it.
        """
        self._borrow()
        cache = copy.deepcopy(self.cache)
        *block, token = prompt
        if block:
            self.system.model(mx.array(block)[None], cache=cache)
            mx.eval([c.state for c in cache])
        answer: list[int] = []
        while len(answer) < max_tokens:
            logits = self.system.model(mx.array([[token]]), cache=cache)
            token = int(logits[0, -1].argmax().item())
            if token in stops:
                break
            answer.append(token)
        return answer
