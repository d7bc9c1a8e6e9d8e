"""Responses: the text of a token and the statistics of a generation."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .archive.lookup import Lookup, Source
from .cache import has_memory, tokens_read


@dataclass
class GenerationResponse:
    """One step of :func:`.stream_generate`: mlx-lm's fields, then ours.

    Args:
        text (str): the next segment of text, maybe empty.
        token (int): the next token; -1 where nothing was generated.
        logprobs (mx.array): log-probabilities of the vocabulary.
        from_draft (bool): always ``False``.
        prompt_tokens (int): tokens of the prompt, the document included.
        prompt_tps (float): tokens per second while reading the prompt.
        generation_tokens (int): tokens generated.
        generation_tps (float): tokens per second while generating.
        peak_memory (float): peak memory so far, in GB (1e9 bytes).
        finish_reason (str): ``"stop"``, ``"length"`` or ``None``.
        state_bytes (int): size of the model's state, in bytes.
        tokens_read (int): all tokens that went into the state.
        tokens_in_window (int): those that attention still sees, sinks included.
        memory (bool): whether there is one; there is none while alpha is 0.
        lookup (Lookup): the passages of an archive for a question; ``None`` without an
            archive.
    """

    text: str = ""
    token: int = -1
    logprobs: mx.array | None = None
    from_draft: bool = False
    prompt_tokens: int = 0
    prompt_tps: float = 0.0
    generation_tokens: int = 0
    generation_tps: float = 0.0
    peak_memory: float = 0.0
    finish_reason: str | None = None
    state_bytes: int = 0
    tokens_read: int = 0
    tokens_in_window: int = 0
    memory: bool = False
    lookup: Lookup | None = None

    @property
    def sources(self) -> Sequence[Source]:
        """The passages that were put before the question, the best first."""
        return self.lookup.sources if self.lookup else ()


Responses = Generator[GenerationResponse, None, None]


def make_response(
    model: nn.Module, cache: list[Any], waiting: int = 0, **fields: Any
) -> GenerationResponse:
    """A response with the numbers of a state, in which tokens may wait to be read."""
    total = tokens_read(cache) + waiting
    fields |= {
        "peak_memory": mx.get_peak_memory() / 1e9,
        "state_bytes": state_bytes(cache),
        "tokens_read": total,
        "tokens_in_window": min(total, model.allmem.sinks + model.allmem.window),
        "memory": has_memory(cache),
    }
    return GenerationResponse(**fields)


def state_bytes(cache: list[Any]) -> int:
    """Size of a state in bytes."""
    return sum(layer.nbytes for layer in cache)


def stop_at(responses: Responses, stop: Sequence[str]) -> Responses:
    """Ends a response before the first of some strings, which may begin and end within
    tokens.

    Text that may be the beginning of a string is held back until that is known.

    Args:
        responses: of :func:`.stream_generate`.
        stop (list): strings, none of them empty.

    Yields:
        GenerationResponse: the same, the last with ``finish_reason`` ``"stop"`` if a
        string was found. The model has then read it.
    """
    held = ""
    with closing(responses):
        for response in responses:
            held += response.text
            found = [at for text in stop if (at := held.find(text)) >= 0]
            if found:
                yield replace(response, text=held[: min(found)], finish_reason="stop")
                return
            back = 0 if response.finish_reason else _beginning(held, stop)
            end = len(held) - back
            yield replace(response, text=held[:end])
            held = held[end:]


def _beginning(text: str, stop: Sequence[str]) -> int:
    """The number of characters at the end of a text that may begin a string."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    for count in range(longest, 0, -1):
        if any(string.startswith(text[-count:]) for string in stop):
            return count
    return 0


def print_stats(response: GenerationResponse) -> None:
    """Prints mlx-lm's three lines about a generation, and one about the state."""
    print(
        f"Prompt: {response.prompt_tokens} tokens, "
        f"{response.prompt_tps:.3f} tokens-per-sec"
    )
    if response.generation_tokens:
        print(
            f"Generation: {response.generation_tokens} tokens, "
            f"{response.generation_tps:.3f} tokens-per-sec"
        )
    print(f"Peak memory: {response.peak_memory:.3f} GB")
    rest = "in memory" if response.memory else "forgotten; memory: none"
    print(
        f"State: {response.state_bytes / 1e6:.1f} MB, {response.tokens_read} tokens "
        f"read ({response.tokens_in_window} in the window, the rest {rest})"
    )
