"""A real book with statements planted in it at several distances from its end, and
questions about them: one reading answers all.

Sets of questions:

- ``facts``: in the words of the statement;
- ``paraphrase``: in other words, none of which is in the passage; see
  :mod:`~allmem_mlx.evaluation.synonyms`;
- ``two``: about two facts that stand apart;
- ``latest``: about the last of three statements that follow each other;
- ``unanswerable``: of the form of the facts, about what the book does not tell.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..archive.cutting import sentences
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize_with_ends
from ..errors import AllMemError
from .planted_words import GOODS, LOST, NAMES, PLACES, THINGS, TRADES
from .synonyms import FORMS, PAIRS, content_words

SETS = ("facts", "paraphrase", "two", "latest", "unanswerable")

APART = 150  # tokens between two statements: about a passage
NEAR = 700  # characters around a place that may be in the same passage
BETWEEN = (12_288, 36_864)  # tokens back where paraphrases and latest facts begin


@dataclass(frozen=True)
class Planted:
    """A question about a book.

    Args:
        kind (str): the set that it belongs to.
        text (str): the question.
        answers (tuple): what a right answer has, all of them; none if the book does
            not tell.
        statements (tuple): the sentences that tell; the last one decides.
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
        """The statements without which no answer can be known to be right."""
        return self.statements[-1:] if self.kind == "latest" else self.statements

    def answered(self, response: str) -> bool:
        """Whether a response is right: it has every answer as a whole word or number,
        and, where the statement changed, none that was true before."""
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
    """Whether a response says that it does not know."""
    return REFUSALS.search(response) is not None


@dataclass(frozen=True)
class PlantedBook:
    """A book with statements planted in it.

    Args:
        text (str): what is read.
        tokens (list): its ids.
        questions (list): about it.
        places (dict): for each statement the tokens that come after it.
    """

    text: str
    tokens: list[int]
    questions: list[Planted]
    places: dict[str, int]


def plant(
    book: str, tokenizer: Any, distances: Sequence[int], samples: int, seed: int
) -> PlantedBook:
    """Plants statements in the beginning of a book.

    Args:
        book (str): its text.
        tokenizer: of the model.
        distances (list): tokens that come after a fact, at least; facts of a distance
            are at least a passage apart, so that the first of them is about 150 tokens
            for each further back.
        samples (int): facts at each distance.
        seed (int): of what is drawn.

    Raises:
        AllMemError: if the book is too short, or has the words that are planted.
    """
    rng = random.Random(f"{seed} {samples} {[*distances]}")
    wanted = _questions(book, distances, samples, rng)
    at: dict[int, list[str]] = {}  # statements by the distance of the last of them
    for distance in distances:
        facts = [q for q in wanted if q.kind == "facts" and q.distance == distance]
        at[distance] = [q.statements[0] for q in facts]
    if max(distances) >= BETWEEN[1] + 80 * APART:
        at[BETWEEN[0]] = [q.statements[0] for q in wanted if q.kind == "paraphrase"]
        latest = [q.statements for q in wanted if q.kind == "latest"]
        at[BETWEEN[1]] = [x for turn in zip(*latest, strict=True) for x in turn]
    else:
        wanted = [q for q in wanted if q.kind not in ("paraphrase", "latest")]
    avoid = {
        q.statements[0]: content_words(q.text) for q in wanted if q.kind == "paraphrase"
    }
    text = _planted(book, tokenizer, at, avoid)
    tokens, ends = [], []
    for ids, stops in tokenize_with_ends([text], as_plain_text(tokenizer)):
        tokens += ids
        ends += stops
    places = {}
    for statement in (x for statements in at.values() for x in statements):
        end = text.index(statement) + len(statement)
        places[statement] = len(ends) - bisect_right(ends, end)
    return PlantedBook(text, tokens, wanted, places)


def _questions(
    book: str, distances: Sequence[int], samples: int, rng: random.Random
) -> list[Planted]:
    known = set(re.findall(r"\w+", book.lower()))

    def unknown(words: Sequence[str]) -> list[str]:
        found = [word for word in words if word.lower() not in known]
        return rng.sample(found, len(found))

    names, places = unknown(NAMES), unknown(PLACES)
    subjects = [unknown(TRADES), unknown(THINGS), unknown(LOST)]
    each = -(-samples // 3)
    needed = each * len(distances) + 8
    if min(map(len, subjects)) < needed or min(len(names), len(places)) < 8:
        raise AllMemError(
            f"the text has too many of the words that are planted: {needed} new ones "
            "of a kind are needed; give another text, or fewer --samples"
        )
    numbers = iter(rng.sample(range(1_000, 10_000), 3 * needed + 400))

    def fact(kind: int, subject: str, distance: int, i: int) -> Planted:
        name, number = names[i % len(names)], str(next(numbers))
        place = places[i % len(places)]
        statement, question, answer = (
            (
                f"The name of the {subject} is {name}.",
                f"What is the name of the {subject}?",
                name,
            ),
            (
                f"The number of the {subject} is {number}.",
                f"What is the number of the {subject}?",
                number,
            ),
            (
                f"The town where the {subject} was lost is {place}.",
                f"What is the town where the {subject} was lost?",
                place,
            ),
        )[kind]
        return Planted("facts", question, (answer,), (statement,), distance)

    questions: list[Planted] = []
    i = 0
    for distance in distances:
        for sample in range(samples):
            kind = sample % 3
            questions.append(fact(kind, subjects[kind].pop(), distance, i))
            i += 1
    facts = list(questions)
    # Two facts, of two kinds, whose statements stand apart.
    halves = [q for q in facts if q.distance == distances[-1]]
    others = [q for q in facts if q.distance == distances[0]]
    for a, b in zip(halves, others[1:] + others[:1], strict=True):
        both = f"{a.text[:-1]}, and {b.text[0].lower()}{b.text[1:]}"
        statements, answers = a.statements + b.statements, a.answers + b.answers
        questions.append(Planted("two", both, answers, statements, a.distance))
    for kind, words in enumerate(subjects):
        for subject in words[:8]:
            question = fact(kind, subject, 0, 0).text
            questions.append(Planted("unanswerable", question, (), ()))
    for good in unknown(GOODS)[:24]:
        prices = [str(next(numbers)) for _ in range(3)]
        statements = tuple(f"The price of the {good} is now {n}." for n in prices)
        question = f"What is the latest price of the {good}?"
        questions.append(
            Planted("latest", question, (prices[-1],), statements, BETWEEN[1])
        )
    for i, (said, asked) in enumerate(PAIRS):
        form, question = FORMS[i % len(FORMS)]
        values = {"name": names[i % len(names)], "place": places[i % len(places)]}
        values["number"] = str(next(numbers))
        answer = values[re.findall(r"{(\w+)}", form)[0]]
        statement = form.replace("_", said).format(**values)
        asked_for = question.replace("_", asked)
        questions.append(
            Planted("paraphrase", asked_for, (answer,), (statement,), BETWEEN[0])
        )
    return questions


def _planted(
    book: str,
    tokenizer: Any,
    at: dict[int, list[str]],
    avoid: dict[str, set[str]],
) -> str:
    """The beginning of a book with statements between its sentences.

    Args:
        book (str): its text.
        tokenizer: of the model.
        at (dict): statements by the tokens that come after the last of them.
        avoid (dict): for a statement the words that must not be near it.

    Raises:
        AllMemError: if the book is too short.
    """

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    # From the end backwards: each statement once enough comes after it. Tokens are
    # counted by the sentence, which is up to 1 % more than they are.
    waiting = [
        (distance + distance // 50 + i * APART, statement)
        for distance, statements in at.items()
        for i, statement in enumerate(reversed(statements))
    ]
    waiting.sort()
    spans, sizes = sentences(book), []
    needed = waiting[-1][0] + 10 * APART
    used = 0
    for start, end in spans:
        sizes.append(tokens(book[start:end]))
        used += sizes[-1]
        if used >= needed:
            break
    else:
        raise AllMemError(
            f"a text has {used} tokens; {needed} are needed: give a longer text, or "
            "smaller --distances"
        )
    pieces: list[str] = []
    after = since = 0
    for index in reversed(range(len(sizes))):
        start, end = spans[index]
        if since >= APART * 2 // 3:
            near = content_words(book[max(0, end - NEAR) : end + NEAR])
            fits = (
                i
                for i, (least, statement) in enumerate(waiting)
                if least <= after and not avoid.get(statement, set()) & near
            )
            if (found := next(fits, None)) is not None:
                _, statement = waiting.pop(found)
                pieces.append(statement + " ")
                after, since = after + tokens(" " + statement), 0
        pieces.append(book[start:end])
        after, since = after + sizes[index], since + sizes[index]
    if waiting:
        raise AllMemError(
            f"there is no place for {len(waiting)} statements; give another text"
        )
    return "".join(reversed(pieces))
