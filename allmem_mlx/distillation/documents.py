"""Documents to train on and to judge by, and the segments in which they are read.

- ``natural``: text as it stands.
- ``repeat``: a passage, other text, the passage again: after a few words of it every
  further word can be recalled.
- ``facts``: statements planted in a text, and a question about each later on.
"""

import math
import random
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..chat_template import PARAGRAPH, Template
from ..errors import AllMemError
from .planted import Fact, draw_facts

FACT = 96  # tokens of a text for each fact that is planted, at least
NEAREST = 64  # tokens between a fact and its question, at least


class Answer(NamedTuple):
    """The answer to a planted question.

    Args:
        at (range): its positions.
        distance (int): tokens between the fact and the answer.
    """

    at: range
    distance: int


class Segment(NamedTuple):
    """A part of a document that is trained on at once.

    Args:
        context (list): token ids before it, which only the teacher reads with it.
        tokens (list): token ids.
        targets (list): its positions whose next token is scored.
        answers (list): the answers that lie in it whole; positions in it.
    """

    context: list[int]
    tokens: list[int]
    targets: list[int]
    answers: list[Answer]

    @property
    def answer_places(self) -> list[int]:
        """The positions of all answers, one answer after the other."""
        return [i for answer in self.answers for i in answer.at]

    def found(self, right: Sequence[bool]) -> list[tuple[int, bool]]:
        """For each answer the distance of its fact, and whether it is right.

        Args:
            right (Sequence[bool]): whether the token at each of
                :attr:`answer_places` is.
        """
        rest = iter(right)
        return [(x.distance, all([next(rest) for _ in x.at])) for x in self.answers]


@dataclass(frozen=True)
class Document:
    """Tokens, and the positions that are scored.

    Args:
        tokens (list): token ids.
        answers (list): the answers to its planted questions.
        scored (list): the positions that are scored; all if ``None``.
    """

    tokens: list[int]
    answers: list[Answer] = field(default_factory=list)
    scored: list[range] | None = None

    def segment(self, start: int, length: int, context: int) -> Segment:
        """A part of it.

        Answers are no targets: what comes before them does not tell a teacher that
        sees only a part of the document what they are.

        Args:
            start (int): its first token.
            length (int): tokens, at most.
            context (int): tokens before it, at most.
        """
        tokens = self.tokens[start : start + length]
        end = start + len(tokens)
        answered = {i for answer in self.answers for i in answer.at}
        targets = [
            i - start
            for i in range(start, min(end, len(self.tokens) - 1))
            if i + 1 not in answered and self._is_scored(i + 1)
        ]
        answers = [
            Answer(range(at.start - start, at.stop - start), distance)
            for at, distance in self.answers
            if start < at.start and at.stop <= end
        ]
        before = self.tokens[max(0, start - context) : start] if tokens else []
        return Segment(before, tokens, targets, answers)

    def whole(self) -> Segment:
        """All of it at once."""
        return self.segment(0, len(self.tokens), 0)

    def _is_scored(self, i: int) -> bool:
        if self.scored is None:
            return True
        place = bisect(self.scored, i, key=lambda part: part.start)
        return place > 0 and i in self.scored[place - 1]


class Source(ABC):
    """Draws documents.

    Args:
        tokenizer: the model's, of ``mlx_lm`` or of transformers.
        seed (int): of the random draws.
    """

    def __init__(self, tokenizer: Any, seed: int):
        self.tokenizer, self.random = tokenizer, random.Random(seed)
        chat = getattr(tokenizer, "chat_template", None) is not None
        self.template = (Template.of_chat if chat else Template.plain)(tokenizer)

    @property
    def kinds(self) -> list[str]:
        """The kinds of text."""
        return [""]

    @abstractmethod
    def passage(self, length: int, kind: str = "") -> list[int]:
        """A text of ``length`` tokens.

        Args:
            length (int): tokens.
            kind (str): one of :attr:`kinds`; any if empty.

        Raises:
            AllMemError: if there is too little.
        """

    def natural(self, length: int) -> Document:
        """A document as it stands."""
        return Document(self.passage(length))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def repeat(self, length: int) -> Document:
        """A passage, other text, the passage again, and more text."""
        draw = self.random
        size = draw.randrange(length // 32, length * 2 // 5)
        gap = draw.randrange(length // 8, max(length // 8 + 1, length - 2 * size + 1))
        passage, rest = self.passage(size), self.passage(length)
        start = draw.randrange(max(1, length - 2 * size - gap + 1))
        middle = start + gap
        tokens = rest[:start] + passage + rest[start:middle] + passage + rest[middle:]
        return Document(tokens[:length])

    def facts(
        self,
        length: int,
        distance: int,
        count: int | None = None,
        held_out: bool = False,
    ) -> Document:
        """Facts in a text, and after each a question: as a part of a conversation, or
        as a further sentence.

        Args:
            length (int): tokens of the document.
            distance (int): tokens between a fact and its question, at most; its
                logarithm is drawn evenly.
            count (int): number of facts, fewer if they would fill the text.
            held_out (bool): facts that are not trained on.

        Raises:
            AllMemError: if the text is too short for a single one.
        """
        draw = self.random
        count = min(count or draw.randrange(4, 65), max(1, length // FACT))
        facts = draw_facts(count, draw, held_out)
        conversation = draw.random() < 0.5 and self.template.following is not None
        start: list[int] = []
        if conversation:
            start = self.template.start + self.tokens(self.template.opening)
        planted = [
            (self.tokens(" " + fact.statement), *self._question(fact, conversation))
            for fact in facts
        ]
        size = length - len(start) - sum(len(x) for fact in planted for x in fact)
        if size < length // 4 and count > 1:
            return self.facts(length, distance, count // 2, held_out)
        if size <= NEAREST:
            raise AllMemError(f"a planted fact does not fit into {length} tokens")
        farthest = min(distance, size - 1)
        places: list[tuple[int, int, list[list[int]]]] = []  # where, which, what
        for i, (statement, *question) in enumerate(planted):
            logarithm = draw.uniform(math.log(NEAREST), math.log(farthest + 1))
            apart = min(farthest, int(math.exp(logarithm)))
            place = draw.randrange(size - apart)
            places += [(place, i, [statement]), (place + apart, i, question)]
        return self._assembled(start, self.passage(size), sorted(places))

    def _question(self, fact: Fact, conversation: bool) -> list[list[int]]:
        """What comes before an answer, the answer, and what comes after it."""
        before, after = "\n" + fact.beginning, ".\n"
        if conversation:
            before = PARAGRAPH + fact.question + self.template.closing + fact.beginning
            after = "." + (self.template.following or "")
        return [self.tokens(part) for part in (before, " " + fact.value, after)]

    def _assembled(
        self,
        start: list[int],
        body: list[int],
        places: list[tuple[int, int, list[list[int]]]],
    ) -> Document:
        """A text with statements, and questions of three parts, at their places."""
        tokens, last = list(start), 0
        stated: dict[int, int] = {}
        answers = []
        for place, i, parts in places:
            tokens += body[last:place]
            last = place
            if len(parts) == 1:
                tokens += parts[0]
                stated[i] = len(tokens)
                continue
            before, answer, after = parts
            tokens += before
            at = range(len(tokens), len(tokens) + len(answer))
            answers.append(Answer(at, at.start - stated[i]))
            tokens += answer + after
        return Document(tokens + body[last:], answers)
