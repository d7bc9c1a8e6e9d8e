"""Passages before the questions about a planted book: those that are looked up, and
the controls."""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import state as states
from ..archive.archive import Archive
from ..archive.lookup import Lookup
from ..archive.passage import Entry, Passage
from ..model import Model
from ..session import Session
from .planting import PlantedQuestion
from .texts import opened

ANSWER = 24  # tokens of an answer at most

# Where passages come from.
FOUND = "looked up"
RIGHT = "oracle"
DRAWN = "random"
ELSEWHERE = "another document"
SOURCES = (FOUND, RIGHT, DRAWN, ELSEWHERE)


@dataclass(frozen=True)
class Retrieval:
    """A question and the passages that can be put before it.

    Args:
        question (PlantedQuestion): the question.
        lookups (dict): by source of the passages; no oracle where the book has no
            answer.
    """

    question: PlantedQuestion
    lookups: dict[str, Lookup]

    def hit(self, source: str | None) -> bool:
        """``True`` if the passages have every statement that decides the answer."""
        if source not in self.lookups or not self.question.statements:
            return False
        texts = [x.passage.text for x in self.lookups[source].sources]
        return all(any(x in text for text in texts) for x in self.question.deciding)


@dataclass(frozen=True)
class ArchivedDocument:
    """A document in an archive of its own.

    Args:
        archive (Archive): the archive.
        entry (Entry): the document's entry.
        bytes (int): size of the archive's file.
    """

    archive: Archive
    entry: Entry
    bytes: int

    def session(self, model: Model) -> Session:
        """A session that looks up passages of it, as if it had been read.

        Args:
            model (Model): its window bounds the passages.
        """
        state = states.new(model)
        state.open_document(self.entry.key, 0)
        return Session(model, self.archive.tokenizer, state, archive=self.archive)


class TemporaryArchives:
    """Archives in a temporary folder; a context manager.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self._documents = tokenizer, list[ArchivedDocument]()

    def __enter__(self) -> "TemporaryArchives":
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error: Any) -> None:
        for document in self._documents:
            document.archive.close()
        self._folder.cleanup()

    def path(self, name: str) -> Path:
        """A path for a file of this name."""
        folder = Path(self._folder.name) / "texts"
        folder.mkdir(exist_ok=True)
        return folder / name

    def add(self, file: Path) -> ArchivedDocument:
        """Indexes a document in an archive of its own."""
        path = Path(self._folder.name) / f"{len(self._documents)}.archive"
        archive = Archive.open(path, self.tokenizer, create=True)
        entry = archive.add(opened(file))
        document = ArchivedDocument(archive, entry, path.stat().st_size)
        self._documents.append(document)
        return document


class Retriever:
    """Looks up passages for questions, as the command does, and draws the controls.

    Args:
        model (Model): its window bounds the passages.
        book (ArchivedDocument): the planted book.
        other (ArchivedDocument): another document.
        limit (int): passages at most.
        seed (int): of the random ones.
    """

    def __init__(
        self,
        model: Model,
        book: ArchivedDocument,
        other: ArchivedDocument,
        limit: int,
        seed: int,
    ):
        self.limit, self.seed = limit, seed
        self.passages = list(book.archive.passages(book.entry))
        self._book, self._other = book.session(model), other.session(model)

    def search(self, question: PlantedQuestion) -> Lookup:
        """The passages of the book that the command finds."""
        return self._look_up(self._book, question)

    def retrieve(self, question: PlantedQuestion) -> Retrieval:
        """The passages that the command finds, and the controls."""
        found = self.search(question)
        drawn = self._drawn(question, len(found.sources) or self.limit)
        lookups = {
            FOUND: found,
            DRAWN: self._look_up(self._book, question, drawn),
            ELSEWHERE: self._look_up(self._other, question),
        }
        if question.statements:
            right = self._right(question)
            lookups[RIGHT] = self._look_up(self._book, question, right)
        return Retrieval(question, lookups)

    def _look_up(
        self,
        session: Session,
        question: PlantedQuestion,
        passages: list[Passage] | None = None,
    ) -> Lookup:
        """A lookup as by the command, of given passages if there are any."""
        search = None if passages is None else lambda *_: passages
        lookup = session.look_up(
            question.text, self.limit, max_tokens=ANSWER, search=search
        )
        assert lookup is not None  # there is an archive, and a document in it
        return lookup

    def _right(self, question: PlantedQuestion) -> list[Passage]:
        """The passages that hold the statements, the deciding one first."""
        found = (
            passage
            for statement in reversed(question.statements)
            for passage in self.passages
            if statement in passage.text
        )
        return list({passage.number: passage for passage in found}.values())

    def _drawn(self, question: PlantedQuestion, count: int) -> list[Passage]:
        others = [
            passage
            for passage in self.passages
            if not any(x in passage.text for x in question.statements)
        ]
        rng = random.Random(f"{self.seed} {question.text}")
        return rng.sample(others, min(count, len(others)))
