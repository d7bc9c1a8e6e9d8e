"""What is compared: a model, its base, and the controls that could explain a gain.

All have the same weights, which are shared. They differ in what they can know of the
tokens that left the window.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

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

# With passages that are looked up; see lookups.py.
ALLMEM_PASSAGES = "AllMem + passages"
WINDOW_PASSAGES = "window + sinks + passages"
FULL_PASSAGES = "full attention + passages"
PASSAGES_ONLY = "passages only"
ORACLE = "oracle passage"
RANDOM = "random passage"
OTHERS = "another document's"
CLOSED = "closed book"

LOGITS = 2**26  # most logits that exist at once; a whole document's never do


@dataclass(frozen=True)
class System:
    """A model that is compared.

    Args:
        name (str): one of the names above.
        model (nn.Module): any mlx-lm model.
        limit (int): tokens it can read; ``None`` for any number.
        borrows (bool): its memory is that of another document.
    """

    name: str
    model: nn.Module
    limit: int | None = None
    borrows: bool = False


def systems(model: Model) -> list[System]:
    """The model and all that it is compared with, in the order of the tables.

    Full attention reads as many tokens as the base was made for, its
    ``max_position_embeddings``.
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
    """Cuts a document as the model does, and so that logits stay few.

    Args:
        tokens (list): ids, from the start of the document.
        model (Model): the hybrid.
    """
    most, start = max(1, LOGITS // model.base_config["vocab_size"]), 0
    for size in model.allmem.cuts(0, len(tokens)):
        parts = math.ceil(size / most)
        part, end = math.ceil(size / parts), start + size  # parts of about one size
        for first in range(start, end, part):
            yield list(tokens[first : min(first + part, end)])
        start = end


class Reader:
    """A system and what it has read of one document.

    Args:
        system (System): what reads.
        model (Model): the hybrid, which has the chunk grid.
        other (list): the other document, for a system that borrows its memory. It is
            read at the same pace, so that both memories are of the same age.

    Raises:
        ValueError: if a system that borrows has nothing to borrow.
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
        for own, lender in zip(self.cache, self._lender, strict=False):
            if own.memory and lender.memory:
                theirs = MemoryState.from_arrays(lender.memory)
                state = MemoryState.from_arrays(own.memory)
                own.memory = state._replace(weights=theirs.weights).arrays()

    def step(self, block: list[int]) -> mx.array:
        """Reads tokens, a block of :func:`blocks`.

        Returns:
            mx.array: logits, ``[T, vocabulary]``.
        """
        if not self._lender:
            return self._step(block)
        # What is borrowed is another memory in every chunk.
        chunk, logits = self.model.allmem.chunk, []
        while block:
            size = chunk - self._tokens % chunk
            logits.append(self._step(block[:size]))
            block = block[size:]
        return mx.concatenate(logits)

    def _step(self, block: list[int]) -> mx.array:
        self._borrow()
        logits = self.system.model(mx.array(block)[None], cache=self.cache)[0]
        theirs = self._other[self._tokens : self._tokens + len(block)]
        if theirs:
            self.model(mx.array(theirs)[None], cache=self._lender)
        mx.eval([c.state for c in [*self.cache, *self._lender]])
        self._tokens += len(block)
        return logits

    def read(self, tokens: Sequence[int]) -> None:
        """Reads the beginning of a document."""
        for block in blocks(tokens, self.model):
            self.step(block)
            mx.clear_cache()

    def read_end(self, tokens: Sequence[int]) -> None:
        """Reads a document as a system does that only has windows and sinks, without
        what it cannot know: between the sinks and the tokens that reach the end
        through the windows of all layers, whole blocks are left out. They count, so
        that everything is where it would be.
        """
        block = self.model.allmem.block
        first = -(-max(1, self.model.allmem.sinks) // block) * block
        reach = sum(layer.self_attn.config.window for layer in self.system.model.layers)
        left_out = max(0, len(tokens) - first - reach) // block * block
        self.read(tokens[:first])
        for layer in self.cache:
            layer.ring.offset += left_out
        self._tokens += left_out
        self.read(tokens[first + left_out :])

    def answer(self, prompt: Sequence[int], most: int, stops: set[int]) -> list[int]:
        """Reads a prompt and answers it, greedily. What was read before stays as it
        is, for another prompt.

        Args:
            prompt (list): token ids, at least one.
            most (int): tokens to generate at most.
            stops (set): ids that end an answer; they are not a part of it.
        """
        self._borrow()
        cache = copy.deepcopy(self.cache)
        *block, token = prompt
        if block:
            self.system.model(mx.array(block)[None], cache=cache)
            mx.eval([c.state for c in cache])
        said: list[int] = []
        while len(said) < most:
            logits = self.system.model(mx.array([[token]]), cache=cache)
            token = int(logits[0, -1].argmax().item())
            if token in stops:
                break
            said.append(token)
        return said
