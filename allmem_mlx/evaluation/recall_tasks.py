"""Documents with facts to recall: a passkey, pairs of words and numbers, facts in a
real book. All distances are exact, in tokens."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import AllMemError

# Landmark attention's passkey task (arXiv 2305.16300), as in InfiniteBench.
INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and "
    "memorize it. I will quiz you about the important information there."
)
NOISE = (
    " The grass is green. The sky is blue. The sun is yellow. Here we go. There and "
    "back again."
)
DEPTHS = (0.0, 0.25, 0.5)

PAIRS = 16
QUERIES = 4
WORDS = (
    "anchor basket candle drum engine feather garden hammer island jacket kettle "
    "ladder magnet needle orchard pepper quarry ribbon saddle ticket umbrella valley "
    "window zipper acorn bridge castle desert eagle forest glove harbor insect "
    "jungle kitten lemon marble nest ocean pencil rabbit spider tunnel"
).split()

BEFORE = 512  # tokens of the book before the facts
NAMES = (
    "Aldous Benedikt Casimir Dorothea Ephraim Florian Gwendolyn Hortensia Ingrid "
    "Jocasta Konstantin Leopold Marguerite Nathanael Ottoline Perpetua Quentin Rosalba "
    "Sigmund Theodora Ulrich Valeria Wilhelmina Zenobia"
).split()
PLACES = (
    "Antwerp Bratislava Cordoba Dunedin Edmonton Freetown Gdansk Helsinki Innsbruck "
    "Jakarta Krakow Ljubljana Montevideo Nairobi Oslo Palermo Quito Reykjavik Salzburg "
    "Tallinn Uppsala Valparaiso Winnipeg Zagreb"
).split()


@dataclass(frozen=True)
class Question:
    """A question about a document.

    Args:
        kind (str): the kind of fact to recall.
        text (str): the question.
        answer (str): a word or a number.
    """

    kind: str
    text: str
    answer: str

    def answered(self, response: str) -> bool:
        """``True`` if the first number of a response is the answer or, for a word, if
        it has that word."""
        if self.answer.isdigit():
            return re.findall(r"\d+", response)[:1] == [self.answer]
        return re.search(rf"\b{re.escape(self.answer)}\b", response, re.I) is not None


@dataclass(frozen=True)
class Task:
    """A document and the questions about it.

    Args:
        name (str): the task.
        document (list): token ids.
        distance (int): tokens of the document after the fact.
        questions (list): each is asked of the same state.
        depth (float): the place of the fact in the document, 0 for its start.
    """

    name: str
    document: list[int]
    distance: int
    questions: list[Question]
    depth: float | None = None


Encode = Callable[[str], list[int]]


def encoder(tokenizer: Any) -> Encode:
    """A tokenizer without special tokens."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _noise(encode: Encode, tokens: int) -> list[int]:
    sentence = encode(NOISE)
    return (sentence * (tokens // len(sentence) + 1))[:tokens]


def passkey(encode: Encode, distance: int, depth: float, rng: random.Random) -> Task:
    """A number of five digits in noise.

    Args:
        encode: the tokenizer's; see :func:`encoder`.
        distance (int): tokens of noise after it.
        depth (float): share of the noise that comes before it.
        rng: draws the number.
    """
    key = str(rng.randint(10_000, 99_999))
    needle = f" The pass key is {key}. Remember it. {key} is the pass key."
    before = round(distance * depth / (1 - depth))
    document = [
        *encode(INSTRUCTION),
        *_noise(encode, before),
        *encode(needle),
        *_noise(encode, distance),
    ]
    question = Question("passkey", "What is the pass key?", key)
    return Task("passkey", document, distance, [question], depth)


def mqar(encode: Encode, distance: int, rng: random.Random) -> Task:
    """Multi-query associative recall (Zoology, arXiv 2312.04927): 16 words with a
    number each, then noise, then 4 of the words are asked for."""
    words = rng.sample(WORDS, PAIRS)
    numbers = [str(number) for number in rng.sample(range(1_000, 10_000), PAIRS)]
    pairs = "".join(
        f"The number of {word} is {number}.\n"
        for word, number in zip(words, numbers, strict=True)
    )
    start = f"Remember the number of each word.\n{pairs}"
    asked = rng.sample(range(PAIRS), QUERIES)
    questions = [
        Question("mqar", f"What is the number of {words[i]}?", numbers[i])
        for i in asked
    ]
    document = [*encode(start), *_noise(encode, distance)]
    return Task("mqar", document, distance, questions)


def facts(
    encode: Encode,
    distance: int,
    book: Sequence[int],
    name: str,
    place: str,
    rng: random.Random,
) -> Task:
    """A name, a number and a place, planted together in a real book.

    Args:
        encode: the tokenizer's.
        distance (int): tokens of the book after the last of them.
        book (list): token ids.
        name, place (str): words that are not in the book.
        rng: draws the number, and the place in the book where the document begins.

    Raises:
        AllMemError: if the book is too short.
    """
    needed = BEFORE + distance
    if len(book) < needed:
        raise AllMemError(
            f"a text has {len(book)} tokens; facts {distance} tokens back need "
            f"{needed}: give a longer text, or smaller --distances"
        )
    number = str(rng.randint(1_000, 9_999))
    statements = (
        f" The name of the glassblower is {name}. The number of the locker is {number}."
        f" The town where the lantern was lost is {place}."
    )
    start = rng.randrange(len(book) - needed + 1)
    middle = start + BEFORE
    document = [
        *book[start:middle],
        *encode(statements),
        *book[middle : middle + distance],
    ]
    questions = [
        Question("name", "What is the name of the glassblower?", name),
        Question("number", "What is the number of the locker?", number),
        Question("place", "What is the town where the lantern was lost?", place),
    ]
    return Task("facts", document, distance, questions)
