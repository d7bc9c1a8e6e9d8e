"""Whether a model still writes after a long reading, or turns in circles."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from ..evaluation.systems import blocks
from ..model import Model, base_model
from ..streaming import read_block

PAGES = 8
PAGE = 1024  # tokens that the base has read when it goes on
CONTINUED = 128  # tokens at most
TEMPERATURES = (0.0, 0.7)
N = 4  # tokens of an n-gram


@dataclass(frozen=True)
class Continuation:
    """How a page goes on, until the end of a text or 128 tokens.

    Args:
        temperature (float): of the sampling; 0 is greedy.
        own (list): token ids of a model that has read everything before.
        base (list): the same of the base model, full attention, that has read the page
            alone.
    """

    temperature: float
    own: list[int]
    base: list[int]


def continuations(
    model: Model, cache: list[Any], tokens: Iterator[int], stops: set[int]
) -> Iterator[Continuation]:
    """Reads 8 pages of 1,024 tokens more, and goes on after each.

    Args:
        model (Model): a hybrid.
        cache (list): what it has read, updated in place.
        tokens (Iterator): ids of what comes next, at least 8,192.
        stops (set): ids that end a text.
    """
    base = base_model(model)
    mx.random.seed(0)
    for _ in range(PAGES):
        *page, last = islice(tokens, PAGE)
        alone = make_prompt_cache(base)
        for reader, state in ((model, cache), (base, alone)):
            for block in blocks(page, model):
                read_block(reader, block, state)
        for temperature in TEMPERATURES:
            yield Continuation(
                temperature,
                _go_on(model, cache, last, temperature, stops),
                _go_on(base, alone, last, temperature, stops),
            )
        read_block(model, [last], cache)


def _go_on(
    model: Any, cache: list[Any], token: int, temperature: float, stops: set[int]
) -> list[int]:
    """What comes after a token; the cache stays as it is."""
    said: list[int] = []
    for found, _ in generate_step(
        mx.array([token]),
        model,
        max_tokens=CONTINUED,
        sampler=make_sampler(temperature),
        prompt_cache=copy.deepcopy(cache),
    ):
        if found in stops:
            break
        said.append(int(found))
    return said


def repeated(texts: Sequence[Sequence[int]]) -> float:
    """Share of 4-grams that their text has had before, of all texts together.

    Args:
        texts (list): token ids of each.

    Returns:
        float: 0 also where no text has a 4-gram.
    """
    grams = [list(zip(*(text[i:] for i in range(N)), strict=False)) for text in texts]
    count = sum(map(len, grams))
    return sum(len(own) - len(set(own)) for own in grams) / max(count, 1)
