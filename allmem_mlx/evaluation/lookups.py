"""What is put before the questions about a planted book: the passages that are looked
up for it, and the controls of that."""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import state as states
from ..archive.archive import Archive, Entry, Passage
from ..archive.lookup import Lookup, Search
from ..model import Model
from ..session import Session
from .planting import Planted
from .texts import opened

ANSWER = 24  # tokens of an answer at most

# Where passages come from.
FOUND = "looked up"
RIGHT = "oracle"
DRAWN = "random"
ELSEWHERE = "another document"
SOURCES = (FOUND, RIGHT, DRAWN, ELSEWHERE)


@dataclass(frozen=True)
class Asked:
    """A question and what can be put before it.

    Args:
        question (Planted): the question.
        lookups (dict): by where the passages come from; no oracle where the book does
            not tell.
    """

    question: Planted
    lookups: dict[str, Lookup]

    def hit(self, source: str | None) -> bool:
        """Whether all that decides the answer is in the passages, word for word."""
        if source not in self.lookups or not self.question.statements:
            return False
        texts = [x.passage.text for x in self.lookups[source].sources]
        return all(any(x in text for text in texts) for x in self.question.deciding)


@dataclass(frozen=True)
class Shelf:
    """A document in an archive of its own.

    Args:
        archive (Archive): where it is.
        entry (Entry): what it is there.
        bytes (int): size of the archive's file.
    """

    archive: Archive
    entry: Entry
    bytes: int

    def session(self, model: Model) -> Session:
        """A session that looks up in it as if it were read.

        Args:
            model (Model): whose window bounds the passages.
        """
        state = states.new(model)
        state.open_document(self.entry.key, 0)
        return Session(model, self.archive.tokenizer, state, archive=self.archive)


class Shelves:
    """Archives in a folder that is gone at the end; a context manager.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self._shelves = tokenizer, list[Shelf]()

    def __enter__(self) -> "Shelves":
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error: Any) -> None:
        for shelf in self._shelves:
            shelf.archive.close()
        self._folder.cleanup()

    def path(self, name: str) -> Path:
        """Where a file of this name may be written."""
        folder = Path(self._folder.name) / "texts"
        folder.mkdir(exist_ok=True)
        return folder / name

    def add(self, file: Path) -> Shelf:
        """Puts a document on a shelf of its own."""
        place = Path(self._folder.name) / f"{len(self._shelves)}.archive"
        archive = Archive.open(place, self.tokenizer, create=True)
        shelf = Shelf(archive, archive.add(opened(file)), place.stat().st_size)
        self._shelves.append(shelf)
        return shelf


class Finder:
    """Looks up what is put before questions, as the command does.

    Args:
        model (Model): whose window bounds the passages.
        book (Shelf): the planted book.
        other (Shelf): another document.
        most (int): passages at most.
        seed (int): of the random ones.
    """

    def __init__(self, model: Model, book: Shelf, other: Shelf, most: int, seed: int):
        self.model, self.book, self.other = model, book, other
        self.most, self.seed = most, seed
        self.passages = list(book.archive.passages(book.entry))
        self._sessions = book.session(model), other.session(model)

    def found(self, question: Planted) -> Lookup:
        """What the command finds."""
        return self._look_up(self._sessions[0], question)

    def all(self, question: Planted) -> Asked:
        """What the command finds, and its controls."""
        found = self.found(question)
        lookups = {FOUND: found}
        if question.statements:
            lookups[RIGHT] = self._given(self._right(question), question)
        drawn = self._drawn(question, len(found.sources) or self.most)
        lookups[DRAWN] = self._given(drawn, question)
        lookups[ELSEWHERE] = self._look_up(self._sessions[1], question)
        return Asked(question, lookups)

    def _look_up(
        self, session: Session, question: Planted, search: Search | None = None
    ) -> Lookup:
        lookup = session.look_up(
            question.text, self.most, max_tokens=ANSWER, search=search
        )
        assert lookup is not None  # there is an archive, and a document in it
        return lookup

    def _given(self, passages: Sequence[Passage], question: Planted) -> Lookup:
        return self._look_up(self._sessions[0], question, lambda *_: list(passages))

    def _right(self, question: Planted) -> list[Passage]:
        """The passages that hold the statements, the deciding one first."""
        kept: dict[int, Passage] = {}
        for statement in reversed(question.statements):
            for passage in self.passages:
                if statement in passage.text:
                    kept.setdefault(passage.number, passage)
        return list(kept.values())

    def _drawn(self, question: Planted, count: int) -> list[Passage]:
        others = [
            passage
            for passage in self.passages
            if not any(x in passage.text for x in question.statements)
        ]
        rng = random.Random(f"{self.seed} {question.text}")
        return rng.sample(others, min(count, len(others)))
