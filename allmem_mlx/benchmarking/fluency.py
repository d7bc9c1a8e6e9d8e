"""Whether a model still writes after a long reading, or turns in circles."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from ..cli.report import table
from ..evaluation.intervals import Interval, ratio
from ..evaluation.systems import ALLMEM, FULL, WINDOW, blocks
from ..model import Model
from ..streaming import reading
from ..variants import base_model, window_model

WRITERS = (ALLMEM, WINDOW, FULL)
PAGES = 12
PAGE = 1024  # tokens that a writer without memory has read when it goes on
CONTINUED = 128  # tokens at most
TEMPERATURES = (0.0, 0.7, 0.7, 0.7, 0.7)  # one for each continuation; 0 is greedy
N = 4  # tokens of an n-gram


@dataclass(frozen=True)
class Continuation:
    """How a page goes on, until the end of a text or 128 tokens.

    Args:
        page (int): its number.
        writer (str): what goes on: the model that has read everything before, or the
            same without memory or with full attention, which have read the page alone.
        temperature (float): of the sampling.
        tokens (list): token ids.
    """

    page: int
    writer: str
    temperature: float
    tokens: list[int]


def continuations(
    model: Model, cache: list[Any], tokens: Iterator[int], stops: set[int]
) -> Iterator[Continuation]:
    """Reads 12 pages of 1,024 tokens more, and goes on after each.

    Args:
        model (Model): a hybrid.
        cache (list): what it has read, updated in place.
        tokens (Iterator): ids of what comes next, at least 12,288.
        stops (set): ids that end a text.
    """
    others = (window_model(model, model.allmem.window), base_model(model))
    mx.random.seed(0)
    for page in range(PAGES):
        *text, last = islice(tokens, PAGE)
        caches = [cache, *map(make_prompt_cache, others)]
        for writer, own, state in zip(WRITERS, (model, *others), caches, strict=True):
            with reading(own) as read:
                for block in blocks(text, model):
                    read(block, state)
            said = _go_on(own, state, last, stops)
            for temperature, found in zip(TEMPERATURES, said, strict=True):
                yield Continuation(page, writer, temperature, found)
        with reading(model) as read:
            read([last], cache)


def _go_on(
    model: Any, cache: list[Any], token: int, stops: set[int]
) -> list[list[int]]:
    """What comes after a token, once for each temperature; the cache stays as it is."""
    rows = len(TEMPERATURES)
    forks = copy.deepcopy(cache)
    for layer in forks:
        layer.state = tree_map(
            lambda x: mx.repeat(x, rows, axis=0) if isinstance(x, mx.array) else x,
            layer.state,
        )
    samplers = [make_sampler(temperature) for temperature in TEMPERATURES]
    last = mx.full((rows, 1), token)
    said = []
    for _ in range(CONTINUED):
        logits = model(last, cache=forks)[:, -1]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        last = mx.stack(
            [
                sampler(row)
                for sampler, row in zip(samplers, mx.split(logprobs, rows), strict=True)
            ]
        )
        said.append(last[:, 0].tolist())
    return [
        list(takewhile(lambda token: token not in stops, row))
        for row in zip(*said, strict=True)
    ]


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


def summarize(found: Sequence[Continuation]) -> list[dict[str, Any]]:
    """For each temperature and writer: how many continuations; the share of 4-grams
    that repeat; how far the mean page's is above that with full attention, with a 95 %
    bootstrap interval over pages; and how many continuations turn in circles: half of
    their 4-grams repeat."""
    rows = []
    for temperature in dict.fromkeys(TEMPERATURES):
        of = {
            writer: [
                [
                    each.tokens
                    for each in found
                    if (each.page, each.writer, each.temperature)
                    == (page, writer, temperature)
                ]
                for page in dict.fromkeys(each.page for each in found)
            ]
            for writer in WRITERS
        }
        shares = {name: np.array([*map(repeated, of[name])]) for name in WRITERS}
        for writer in WRITERS:
            texts = [text for page in of[writer] for text in page]
            above = shares[writer] - shares[FULL]
            rows.append(
                {
                    "temperature": temperature,
                    "writer": writer,
                    "continuations": len(texts),
                    "repeated": repeated(texts),
                    "above": asdict(ratio(above, np.ones(len(above)), seed=0)),
                    "circles": sum(repeated([text]) >= 0.5 for text in texts),
                }
            )
    return rows


def describe(rows: list[dict[str, Any]]) -> str:
    """The summary as a table."""
    head = ["temperature", "", f"repeated {N}-grams"]
    head += [f"above {FULL}", "in circles"]
    return table(
        head,
        [
            [
                f"{row['temperature']:g}",
                row["writer"],
                f"{row['repeated']:.3f}",
                "-" if row["writer"] == FULL else str(Interval(**row["above"])),
                f"{row['circles']} of {row['continuations']}",
            ]
            for row in rows
        ],
    )
