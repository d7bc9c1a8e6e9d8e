"""Documents to train on and to judge by.

- ``natural``: a piece of a text file, or an example of a JSONL file.
- ``repeat``: a passage, other text, the passage again: after a few words of it every
  further word can be recalled.
- ``facts``: statements planted in a text, and questions about them after it.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..chat_template import PARAGRAPH, Template
from ..errors import AllMemError, reason
from .planted import draw_facts

TRIES = 100  # draws until a text is long enough


@dataclass(frozen=True)
class Document:
    """Tokens, and the positions that are scored.

    Args:
        tokens (list): token ids.
        answers (list): for each planted question, the positions of its answer.
        response (range): the positions that are scored; all if ``None``.
    """

    tokens: list[int]
    answers: list[range] = field(default_factory=list)
    response: range | None = None

    def targets(self, window: int) -> list[int]:
        """Positions beyond a window whose next token is scored."""
        scored = self.response or range(len(self.tokens))
        return [i for i in range(window, len(self.tokens) - 1) if i + 1 in scored]

    def answer_targets(self) -> list[int]:
        """Positions whose next token belongs to the answer of a planted question."""
        return [i - 1 for answer in self.answers for i in answer]

    def loss(
        self, divergence: Callable[[list[int]], Any], window: int, answer_weight: float
    ) -> Any:
        """The mean over the positions beyond the window, plus the weighted mean over
        those that answer a planted question.

        Args:
            divergence (Callable): sum over a list of positions, of any back end.
            window (int): W.
            answer_weight (float): see :class:`Recipe`.
        """
        targets, answers = self.targets(window), self.answer_targets()
        loss = divergence(targets) / len(targets)
        if answers:
            loss = loss + answer_weight * divergence(answers) / len(answers)
        return loss


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

    @abstractmethod
    def passage(self, length: int) -> list[int]:
        """A text of ``length`` tokens.

        Raises:
            AllMemError: if there is too little.
        """

    def natural(self, length: int, window: int) -> Document:
        """A document as it stands, with something to score beyond the window."""
        return Document(self.passage(length))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def repeat(self, length: int) -> Document:
        """A passage, other text, the passage again, and more text."""
        size = self.random.randrange(length // 8, length * 2 // 5)
        passage, between = self.passage(size), self.passage(length)
        gap = self.random.randrange(
            length // 8, max(length // 8 + 1, length - 2 * size + 1)
        )
        tokens = passage + between[:gap] + passage + between[gap:]
        return Document(tokens[:length])

    def facts(
        self, length: int, count: int | None = None, held_out: bool = False
    ) -> Document:
        """Facts in the first half of a text, and questions after it: as a conversation,
        or as further sentences. Fewer than ``count`` if they would fill the text."""
        draw = self.random
        count = count or draw.randrange(4, max(5, min(24, length // 96)))
        facts = draw_facts(count, draw, held_out)
        statements = [self.tokens(" " + fact.statement) for fact in facts]
        conversation = draw.random() < 0.5 and self.template.following is not None
        start, questions = [], []
        for fact in draw.sample(facts, count):
            if conversation:
                before = fact.question + self.template.closing + fact.beginning
                after = "." + (self.template.following or "")
            else:
                before, after = "\n" + fact.beginning, "."
            parts = before, " " + fact.value, after
            questions.append([self.tokens(part) for part in parts])
        if conversation:
            start = self.template.start + self.tokens(self.template.opening)
            questions[0][0] = self.tokens(PARAGRAPH) + questions[0][0]
        end = sum(len(part) for parts in questions for part in parts)
        size = length - len(start) - end - sum(map(len, statements))
        if size < length // 4 and count > 1:
            return self.facts(length, count // 2, held_out)
        if size < 2:
            raise AllMemError(f"a planted fact does not fit into {length} tokens")
        body = self.passage(size)
        # Statements are in the first half, so that the questions are far away.
        places = sorted(draw.randrange(len(body) // 2) for _ in statements)
        tokens, last = list(start), 0
        for place, statement in zip(places, statements, strict=True):
            tokens += body[last:place] + statement
            last = place
        tokens += body[last:]
        answers = []
        for question, answer, rest in questions:
            tokens += question
            answers.append(range(len(tokens), len(tokens) + len(answer)))
            tokens += answer + rest
        return Document(tokens, answers)


class Texts(Source):
    """Draws from text files.

    Args:
        files (Sequence[Path]): UTF-8.
    """

    def __init__(self, files: Sequence[Path], tokenizer: Any, seed: int):
        super().__init__(tokenizer, seed)
        self.files = list(files)

    def passage(self, length: int) -> list[int]:
        """A part of a random file, from the beginning of a paragraph."""
        for _ in range(TRIES):
            path = self.random.choice(self.files)
            characters = 8 * length  # of which a token has 4 to 5
            size = path.stat().st_size
            start = self.random.randrange(max(1, size - characters))
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(characters).decode("utf-8", "ignore")
            tokens = self.tokens(text[text.find("\n\n") + 2 :])
            if len(tokens) >= length:
                return tokens[:length]
        raise AllMemError(
            f"{path.parent}: too little text for {length} tokens; add texts, or train "
            "on shorter ones with --lengths"
        )


class Examples(Source):
    """Draws from a JSONL file as mlx-lm trains on: ``text``, ``messages``, or
    ``prompt`` and ``completion``. Of a conversation only the last response is scored.

    Args:
        file (Path): the file.

    Raises:
        AllMemError: if it is another kind of file.
    """

    def __init__(self, file: Path, tokenizer: Any, seed: int):
        from mlx_lm.tuner.datasets import create_dataset

        super().__init__(tokenizer, seed)
        self.file = file
        try:
            lines = file.read_text("utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            text = "text" in rows[0] and "messages" not in rows[0]
            options = SimpleNamespace(mask_prompt=not text)
            self.dataset = create_dataset(rows, tokenizer, options)
            self._process(0)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise AllMemError(
                f"{file} is not a data set of mlx-lm: {reason(error)}"
            ) from None

    def _process(self, i: int) -> tuple[list[int], int]:
        try:
            tokens, offset = self.dataset.process(self.dataset[i])
        except (TypeError, LookupError, ValueError) as error:
            raise AllMemError(
                f"{self.file}: example {i + 1} is not like the first: {reason(error)}"
            ) from None
        return list(tokens), offset

    def _draw(self) -> tuple[list[int], int]:
        return self._process(self.random.randrange(len(self.dataset)))

    def passage(self, length: int) -> list[int]:
        """Examples one after another, from the middle of the first."""
        tokens: list[int] = []
        for _ in range(TRIES):
            example, _ = self._draw()
            start = 0 if tokens else self.random.randrange(len(example))
            tokens += example[start:]
            if len(tokens) >= length:
                return tokens[:length]
        raise AllMemError(
            f"{self.file}: too little text for {length} tokens; add text, or train on "
            "shorter ones with --lengths"
        )

    def natural(self, length: int, window: int) -> Document:
        """An example, cut to the length."""
        for _ in range(TRIES):
            tokens, offset = self._draw()
            tokens = tokens[:length]
            document = Document(tokens, response=range(offset, len(tokens)))
            if document.targets(window):
                return document
        raise AllMemError(
            f"{self.file}: no example in {TRIES} has anything to score beyond a window "
            f"of {window}"
        )


class Collected(Source):
    """Draws from the student's answers.

    Args:
        documents (Sequence[Document]): of ``stage2.py``.
    """

    def __init__(self, documents: Sequence[Document], tokenizer: Any, seed: int):
        super().__init__(tokenizer, seed)
        self.documents = list(documents)

    def passage(self, length: int) -> list[int]:
        raise AllMemError("only collected answers can be drawn in the second stage")

    def natural(self, length: int, window: int) -> Document:
        beyond = [d for d in self.documents if d.targets(window)]
        if not beyond:
            raise AllMemError(f"no answer lies beyond a window of {window}")
        return self.random.choice(beyond)


def _prefixes(setting: str) -> tuple[str, ...]:
    """Beginnings of names, separated by commas."""
    return tuple(x for x in setting.split(",") if x)


def open_sources(
    data: str, held_out: str, validation: str, tokenizer: Any, seed: int
) -> tuple[Source, Source]:
    """The documents to train on, and those to judge by.

    Args:
        data (str): folder with ``train.jsonl`` and ``valid.jsonl``, or text files.
        held_out, validation (str): see :class:`Recipe`.
        tokenizer: the model's.
        seed (int): of the random draws.

    Raises:
        AllMemError: if there are none.
    """
    folder = Path(data)
    if (folder / "train.jsonl").is_file():
        train, valid = folder / "train.jsonl", folder / "valid.jsonl"
        return Examples(train, tokenizer, seed), Examples(valid, tokenizer, seed + 1)
    judged, held_back = _prefixes(validation), _prefixes(validation + "," + held_out)
    files = sorted(folder.glob("*.txt"))
    training = [f for f in files if not f.name.startswith(held_back)]
    validating = [f for f in files if f.name.startswith(judged)]
    for purpose, texts in (("train", training), ("validation", validating)):
        if not texts:
            raise AllMemError(
                f"{data}: no text file (*.txt) for {purpose}, and no train.jsonl"
            )
    return Texts(training, tokenizer, seed), Texts(validating, tokenizer, seed + 1)
