"""A real book with statements planted in it at several distances from its end, and
questions about them, all of which a model can answer after one reading.

Sets of questions:

- ``facts``: in the words of the statement;
- ``paraphrase``: in other words, none of which is in the passage; see
  :mod:`~allmem_mlx.evaluation.synonyms`;
- ``two``: about two facts that stand apart;
- ``latest``: about the last of three statements, each of which replaces the one before;
- ``unanswerable``: of the form of the facts, about things that the book never mentions.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..archive.cutting import sentences
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize
from ..errors import AllMemError
from .planted_words import GOODS, LOST, NAMES, PLACES, THINGS, TRADES
from .synonyms import FORMS, PAIRS, content_words

SETS = ("facts", "paraphrase", "two", "latest", "unanswerable")

APART = 150  # tokens between two statements: about a passage
NEAR = 700  # characters around a place that may be in the same passage
PARAPHRASES, LATEST = 12_288, 36_864  # tokens back where these sets begin
PREDICATES = (
    "name of the {}",
    "number of the {}",
    "town where the {} was lost",
)


@dataclass(frozen=True)
class PlantedQuestion:
    """A question about a planted book.

    Args:
        kind (str): the set that it belongs to.
        text (str): the question.
        answers (tuple): words and numbers that a right answer has, all of them; none
            if the book has no answer.
        statements (tuple): the sentences with the answer; the last one decides.
        distance (int): the distance that was asked for, in tokens, of two the longer
            one; 0 for none.
    """

    kind: str
    text: str
    answers: tuple[str, ...]
    statements: tuple[str, ...]
    distance: int = 0

    @property
    def deciding(self) -> tuple[str, ...]:
        """The statements that the answer depends on."""
        return self.statements[-1:] if self.kind == "latest" else self.statements

    def answered(self, response: str) -> bool:
        """``True`` if a response has every answer as a whole word or number and, where
        the statement changed, none that was true before."""
        if not self.answers:
            return refuses(response)
        if self.kind == "latest":
            numbers = re.findall(r"\d+", response.replace(",", ""))
            return numbers[:1] == list(self.answers)
        return all(
            re.search(rf"\b{re.escape(x)}\b", response.replace(",", ""), re.I)
            for x in self.answers
        )


REFUSALS = re.compile(
    r"\b(not|no|cannot|can't|doesn't|don't|isn't|unknown|unable|unclear|nothing|none|"
    r"never)\b",
    re.I,
)


def refuses(response: str) -> bool:
    """``True`` if a response says that it does not know."""
    return REFUSALS.search(response) is not None


@dataclass(frozen=True)
class PlantedBook:
    """A book with statements planted in it.

    Args:
        text (str): the book with the statements.
        tokens (list): its token ids.
        questions (list): the questions.
        places (dict): for each statement the tokens that come after it.
    """

    text: str
    tokens: list[int]
    questions: list[PlantedQuestion]
    places: dict[str, int]


def plant(
    book: str, tokenizer: Any, distances: Sequence[int], samples: int, seed: int
) -> PlantedBook:
    """Plants statements in the beginning of a book.

    Args:
        book (str): its text.
        tokenizer: of the model.
        distances (list): tokens that come after a fact, at least; facts of a distance
            are at least a passage apart, so that each is about 150 tokens further back
            than the next one.
        samples (int): facts at each distance.
        seed (int): random seed.

    Raises:
        AllMemError: if the book is too short, or has the words that are planted.
    """
    rng = random.Random(f"{seed} {samples} {[*distances]}")
    questions = _questions(book, distances, samples, rng)
    facts = [x for x in questions if x.kind == "facts"]
    at = [
        (distance, [x.statements[0] for x in facts if x.distance == distance])
        for distance in distances
    ]
    paraphrases = {x.statements[0]: x for x in questions if x.kind == "paraphrase"}
    if max(distances) >= LATEST + 80 * APART:
        latest = [x.statements for x in questions if x.kind == "latest"]
        in_turn = [x for turn in zip(*latest, strict=True) for x in turn]
        at += [(PARAPHRASES, list(paraphrases)), (LATEST, in_turn)]
    else:
        questions = [x for x in questions if x.kind not in ("paraphrase", "latest")]
    avoid = {x: content_words(question.text) for x, question in paraphrases.items()}
    text = _insert(book, tokenizer, at, avoid)
    tokens, ends = [], []
    for ids, stops in tokenize([text], as_plain_text(tokenizer)):
        tokens += ids
        ends += stops
    places = {}
    for statement in (x for _, statements in at for x in statements):
        end = text.index(statement) + len(statement)
        places[statement] = len(ends) - bisect_right(ends, end)
    return PlantedBook(text, tokens, questions, places)


def _questions(
    book: str, distances: Sequence[int], samples: int, rng: random.Random
) -> list[PlantedQuestion]:
    """The questions of all sets, about words that the book does not have."""
    known = set(re.findall(r"\w+", book.lower()))

    def unknown(words: Sequence[str]) -> list[str]:
        found = [word for word in words if word.lower() not in known]
        return rng.sample(found, len(found))

    names, places = unknown(NAMES), unknown(PLACES)
    subjects = [unknown(TRADES), unknown(THINGS), unknown(LOST)]
    needed = -(-samples // 3) * len(distances) + 8
    if min(map(len, subjects)) < needed or min(len(names), len(places)) < 8:
        raise AllMemError(
            f"the text has too many of the words that are planted: {needed} new ones "
            "of a kind are needed; give another text, or fewer --samples"
        )
    numbers = map(str, rng.sample(range(1_000, 10_000), 3 * needed + 400))

    def fact(kind: int, subject: str, distance: int, i: int) -> PlantedQuestion:
        values = names[i % len(names)], next(numbers), places[i % len(places)]
        predicate = PREDICATES[kind].format(subject)
        statement = f"The {predicate} is {values[kind]}."
        question = f"What is the {predicate}?"
        return PlantedQuestion(
            "facts", question, (values[kind],), (statement,), distance
        )

    facts = [
        fact(sample % 3, subjects[sample % 3].pop(), distance, i * samples + sample)
        for i, distance in enumerate(distances)
        for sample in range(samples)
    ]
    unanswerable = [
        PlantedQuestion("unanswerable", fact(kind, subject, 0, 0).text, (), ())
        for kind, words in enumerate(subjects)
        for subject in words[:8]
    ]
    latest = [_latest(good, numbers) for good in unknown(GOODS)[:24]]
    paraphrases = [
        _paraphrase(i, names[i % len(names)], places[i % len(places)], next(numbers))
        for i in range(len(PAIRS))
    ]
    return [*facts, *_two(facts, distances), *unanswerable, *latest, *paraphrases]


def _two(
    facts: Sequence[PlantedQuestion], distances: Sequence[int]
) -> list[PlantedQuestion]:
    """Pairs of facts, of two kinds, at the longest distance and at the shortest."""
    far = [x for x in facts if x.distance == distances[-1]]
    near = [x for x in facts if x.distance == distances[0]]
    return [
        PlantedQuestion(
            "two",
            f"{a.text[:-1]}, and {b.text[0].lower()}{b.text[1:]}",
            a.answers + b.answers,
            a.statements + b.statements,
            a.distance,
        )
        for a, b in zip(far, near[1:] + near[:1], strict=True)
    ]


def _latest(good: str, numbers: Iterator[str]) -> PlantedQuestion:
    prices = list(islice(numbers, 3))
    statements = tuple(f"The price of the {good} is now {price}." for price in prices)
    question = f"What is the latest price of the {good}?"
    return PlantedQuestion("latest", question, (prices[-1],), statements, LATEST)


def _paraphrase(i: int, name: str, place: str, number: str) -> PlantedQuestion:
    (in_statement, in_question), (form, question) = PAIRS[i], FORMS[i % len(FORMS)]
    values = {"name": name, "place": place, "number": number}
    statement = form.replace("_", in_statement).format(**values)
    answer = values[re.findall(r"{(\w+)}", form)[0]]
    question = question.replace("_", in_question)
    return PlantedQuestion("paraphrase", question, (answer,), (statement,), PARAPHRASES)


def _insert(
    book: str,
    tokenizer: Any,
    at: Sequence[tuple[int, list[str]]],
    avoid: dict[str, set[str]],
) -> str:
    """The beginning of a book with statements between its sentences.

    Args:
        book (str): its text.
        tokenizer: of the model.
        at (list): tokens, and the statements of which the last has so many after it.
        avoid (dict): for a statement the words that must not be near it.

    Raises:
        AllMemError: if the book is too short.
    """

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    # From the end backwards: each statement once enough comes after it. Tokens are
    # counted by the sentence, which is up to 1 % more than they are.
    waiting = sorted(
        (distance + distance // 50 + i * APART, statement)
        for distance, statements in at
        for i, statement in enumerate(reversed(statements))
    )
    needed = waiting[-1][0] + 10 * APART
    spans, sizes, used = sentences(book), [], 0
    for start, end in spans:
        sizes.append(count(book[start:end]))
        used += sizes[-1]
        if used >= needed:
            break
    else:
        raise AllMemError(
            f"a text has {used} tokens; {needed} are needed: give a longer text, or "
            "smaller --distances"
        )
    reversed_text: list[str] = []
    after = since = 0  # tokens after this place, and since the last statement
    for index in reversed(range(len(sizes))):
        start, end = spans[index]
        if since >= APART * 2 // 3:
            near = content_words(book[max(0, end - NEAR) : end + NEAR])
            for i, (minimum, statement) in enumerate(waiting):
                if minimum <= after and not avoid.get(statement, set()) & near:
                    del waiting[i]
                    reversed_text.append(statement + " ")
                    after, since = after + count(" " + statement), 0
                    break
        reversed_text.append(book[start:end])
        after, since = after + sizes[index], since + sizes[index]
    if waiting:
        raise AllMemError(
            f"there is no place for {len(waiting)} statements; give another text"
        )
    return "".join(reversed(reversed_text))
