"""Whether a model still writes after a long reading, or turns in circles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..evaluation.systems import ALLMEM, FULL, Reader, System
from ..model import Model, base_model

PAGES = 8
PAGE = 1024  # tokens that the base has read when it goes on
CONTINUED = 128  # tokens at most
N = 4  # tokens of an n-gram


@dataclass(frozen=True)
class Continuation:
    """How a page goes on, greedily, until the end of a text or 128 tokens.

    Args:
        own (list): token ids of a model that has read everything before.
        base (list): the same of the base model, full attention, that has read the page
            alone.
    """

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
    reader = Reader(System(ALLMEM, model), model)
    reader.cache = cache
    for _ in range(PAGES):
        *page, last = islice(tokens, PAGE)
        base = Reader(System(FULL, base_model(model)), model)
        found = []
        for each in (reader, base):
            each.read(page)
            found.append(each.answer([last], CONTINUED, stops))
        reader.read([last])
        yield Continuation(*found)


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
