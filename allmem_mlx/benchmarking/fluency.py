"""Repetition in what a model writes after a long reading."""

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
PAGE = 1024  # tokens that a writer without memory has read
CONTINUED = 128  # tokens of a continuation at most
TEMPERATURES = (0.0, 0.7, 0.7, 0.7, 0.7)  # one for each continuation; 0 is greedy
N = 4  # tokens of an n-gram


@dataclass(frozen=True)
class Continuation:
    """The continuation of a page, to the end of a text or 128 tokens.

    Args:
        page (int): the page's number.
        writer (str): the model that has read everything before, or the same without
            memory or with full attention, which have read the page alone.
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
    """Reads 12 pages of 1,024 tokens more, and continues each.

    Args:
        model (Model): a hybrid.
        cache (list): its state, updated in place.
        tokens (Iterator): ids of the pages, at least 12,288.
        stops (set): ids that end a text.
    """
    others = (window_model(model, model.allmem.window), base_model(model))
    mx.random.seed(0)
    for page in range(PAGES):
        *text, last = islice(tokens, PAGE)
        caches = [cache, *map(make_prompt_cache, others)]
        for name, writer, state in zip(WRITERS, (model, *others), caches, strict=True):
            with reading(writer) as read:
                for block in blocks(text, model):
                    read(block, state)
            continued = _continue(writer, state, last, stops)
            for temperature, found in zip(TEMPERATURES, continued, strict=True):
                yield Continuation(page, name, temperature, found)
        with reading(model) as read:
            read([last], cache)


def _continue(
    model: Any, cache: list[Any], token: int, stops: set[int]
) -> list[list[int]]:
    """Continuations of a token, one for each temperature, from a copy of the cache."""
    rows = len(TEMPERATURES)
    forks = copy.deepcopy(cache)
    for layer in forks:
        layer.state = tree_map(
            lambda x: mx.repeat(x, rows, axis=0) if isinstance(x, mx.array) else x,
            layer.state,
        )
    samplers = [make_sampler(temperature) for temperature in TEMPERATURES]
    last = mx.full((rows, 1), token)
    columns = []
    for _ in range(CONTINUED):
        logits = model(last, cache=forks)[:, -1]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        last = mx.stack(
            [
                sampler(row)
                for sampler, row in zip(samplers, mx.split(logprobs, rows), strict=True)
            ]
        )
        columns.append(last[:, 0].tolist())
    return [
        list(takewhile(lambda token: token not in stops, row))
        for row in zip(*columns, strict=True)
    ]


def repeated(texts: Sequence[Sequence[int]]) -> float:
    """The share of repeated 4-grams: of those of all texts, the ones that their text
    has had before.

    Args:
        texts (list): token ids of each.

    Returns:
        float: 0 also if no text has a 4-gram.
    """
    grams = [list(zip(*(text[i:] for i in range(N)), strict=False)) for text in texts]
    count = sum(map(len, grams))
    return sum(len(x) - len(set(x)) for x in grams) / max(count, 1)


def summarize(found: Sequence[Continuation]) -> list[dict[str, Any]]:
    """For each temperature and writer: the number of continuations; the share of
    repeated 4-grams; its mean over pages above that of full attention, with a 95 %
    bootstrap interval over pages; and the number of continuations in circles, of which
    half of the 4-grams are repeated."""
    rows = []
    pages = dict.fromkeys(x.page for x in found)
    for temperature in dict.fromkeys(TEMPERATURES):
        texts: dict[str, dict[int, list[list[int]]]] = {
            writer: {page: [] for page in pages} for writer in WRITERS
        }
        for x in found:
            if x.temperature == temperature:
                texts[x.writer][x.page].append(x.tokens)
        shares = {
            name: np.array([*map(repeated, by_page.values())])
            for name, by_page in texts.items()
        }
        for writer, by_page in texts.items():
            everything = [text for page in by_page.values() for text in page]
            above = shares[writer] - shares[FULL]
            rows.append(
                {
                    "temperature": temperature,
                    "writer": writer,
                    "continuations": len(everything),
                    "repeated": repeated(everything),
                    "above": asdict(ratio(above, np.ones(len(above)), seed=0)),
                    "circles": sum(repeated([text]) >= 0.5 for text in everything),
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
