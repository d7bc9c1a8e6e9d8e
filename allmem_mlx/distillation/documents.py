"""Documents to train and judge on.

- ``natural``: a piece of a text file, or an example of a JSONL file.
- ``repeat``: a passage, other text, the passage again: after a few words of it every
  further word can be recalled.
- ``facts``: sentences planted in a text, and questions about them after it.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..chat_template import PARAGRAPH, Template
from ..errors import AllMemError, reason
from .planted import draw_facts

TRIES = 100  # of finding what is long enough


@dataclass(frozen=True)
class Document:
    """Tokens, and which of them count.

    Args:
        tokens (list): token ids.
        answers (list): for each planted question, the positions of its answer.
        response (range): the positions that are scored, where only a response is;
            ``None`` for all.
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


class Source(ABC):
    """Draws documents.

    Args:
        tokenizer: the model's, as of ``mlx_lm`` or of transformers.
        seed (int): of everything drawn.
    """

    def __init__(self, tokenizer: Any, seed: int):
        self.tokenizer, self.random = tokenizer, random.Random(seed)
        chat = getattr(tokenizer, "chat_template", None) is not None
        self.template = (Template.of_chat if chat else Template.plain)(tokenizer)

    @abstractmethod
    def passage(self, length: int) -> list[int]:
        """So many tokens of text.

        Raises:
            AllMemError: if there is too little.
        """

    def natural(self, length: int, window: int) -> Document:
        """A document as they are, with something to score beyond the window."""
        return Document(self.passage(length))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def repeat(self, length: int) -> Document:
        """A passage, other text, the passage again, ..."""
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
        """Facts in the first half of a text, questions after it: as a conversation, or
        as further sentences. Less than ``count``, where those would be most of it."""
        draw = self.random
        count = count or draw.randrange(4, max(5, min(24, length // 96)))
        facts = draw_facts(count, draw, held_out)
        told = [self.tokens(" " + fact.told) for fact in facts]
        conversation = draw.random() < 0.5 and self.template.following is not None
        start, asked = [], []
        for fact in draw.sample(facts, count):
            if conversation:
                before = fact.asked + self.template.closing + fact.begun
                after = "." + (self.template.following or "")
            else:
                before, after = "\n" + fact.begun, "."
            asked.append([self.tokens(x) for x in (before, " " + fact.value, after)])
        if conversation:
            start = self.template.start + self.tokens(self.template.opening)
            asked[0][0] = self.tokens(PARAGRAPH) + asked[0][0]
        tail = sum(len(part) for parts in asked for part in parts)
        size = length - len(start) - tail - sum(map(len, told))
        if size < length // 4 and count > 1:
            return self.facts(length, count // 2, held_out)
        if size < 2:
            raise AllMemError(f"a planted fact does not fit into {length} tokens")
        body = self.passage(size)
        # Facts lie in the first half, so that questions are far away.
        places = sorted(draw.randrange(len(body) // 2) for _ in told)
        tokens, last = list(start), 0
        for place, fact_tokens in zip(places, told, strict=True):
            tokens += body[last:place] + fact_tokens
            last = place
        tokens += body[last:]
        answers = []
        for question, answer, rest in asked:
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
        """A piece of a random file, from the beginning of a paragraph."""
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
        raise AllMemError(f"{path.parent}: too little text for {length} tokens")


class Examples(Source):
    """Draws from a JSONL file as mlx-lm's trainers read it: ``text``, ``messages``, or
    ``prompt`` and ``completion``. Of a conversation only the last response is scored.

    Args:
        file (Path): the file.

    Raises:
        AllMemError: if it is no such file.
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
                f"{file} is not what mlx-lm trains on: {reason(error)}"
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
        """Examples one after the other, from the middle of one."""
        tokens: list[int] = []
        for _ in range(TRIES):
            more, _ = self._draw()
            tokens += more if tokens else more[self.random.randrange(len(more)) :]
            if len(tokens) >= length:
                return tokens[:length]
        raise AllMemError(f"{self.file}: too little text for {length} tokens")

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
    """Draws from documents that were collected before.

    Args:
        documents (Sequence[Document]): they.
    """

    def __init__(self, documents: Sequence[Document], tokenizer: Any, seed: int):
        super().__init__(tokenizer, seed)
        self.documents = list(documents)

    def passage(self, length: int) -> list[int]:
        raise AllMemError("answers are collected already; there is no other text")

    def natural(self, length: int, window: int) -> Document:
        found = [d for d in self.documents if d.targets(window)]
        if not found:
            raise AllMemError(f"no answer lies beyond a window of {window}")
        return self.random.choice(found)


def names(listed: str) -> tuple[str, ...]:
    """What is separated by commas."""
    return tuple(x for x in listed.split(",") if x)


def open_sources(
    data: str, held_out: str, validation: str, tokenizer: Any, seed: int
) -> tuple[Source, Source]:
    """What to train on and what to judge on.

    Args:
        data (str): folder with ``train.jsonl`` and ``valid.jsonl``, or text files.
        held_out, validation (str): see :class:`Recipe`.
        tokenizer: the model's.
        seed (int): of everything drawn.

    Raises:
        AllMemError: if there are none.
    """
    folder = Path(data)
    if (folder / "train.jsonl").is_file():
        training, valid = (
            Examples(folder / f"{name}.jsonl", tokenizer, seed + i)
            for i, name in enumerate(("train", "valid"))
        )
        return training, valid
    files = sorted(folder.glob("*.txt"))
    apart = names(validation) + names(held_out)
    kinds = {
        "train": [f for f in files if not f.name.startswith(apart)],
        "validation": [f for f in files if f.name.startswith(names(validation))],
    }
    for name, found in kinds.items():
        if not found:
            raise AllMemError(
                f"{data}: no text file (*.txt) for {name}, and no train.jsonl"
            )
    return (
        Texts(kinds["train"], tokenizer, seed),
        Texts(kinds["validation"], tokenizer, seed + 1),
    )
