"""Passages of an archive: as values, and as a table with an index of their words."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..documents import Mark
from .database import Database
from .terms import query, terms

LONGEST_NAME = 80  # characters of a file or a section in a place
# The rows of PassageTable._passage.
PASSAGES = """
    SELECT passages.*, documents.tokens FROM passages
    JOIN documents ON documents.id = passages.document
"""


@dataclass(frozen=True)
class Entry:
    """A document in an archive.

    Args:
        id (int): its number in the archive.
        key (str): its name in states.
        name (str): its name in messages.
        tokens (int): number of its tokens.
        complete (bool): whether all of it is in the archive.
    """

    id: int
    key: str
    name: str
    tokens: int
    complete: bool


@dataclass(frozen=True)
class Passage:
    """A passage of a document in an archive.

    Args:
        text (str): the text, word for word.
        mark (Mark): its origin; the offset counts the characters of the file's text
            before it.
        document (int): the document's number in the archive.
        number (int): its number in the document, from 0.
        first, last (int): its tokens, counted from the start of the document.
        place (float): fraction of its file before it, 0 to 1.
        count (int): number of neighbouring passages in it.
    """

    text: str
    mark: Mark
    document: int
    number: int
    first: int
    last: int
    place: float
    count: int = 1

    @property
    def record(self) -> dict[str, Any]:
        """The origin, the tokens and the text, for JSON."""
        tokens = {"first": self.first, "last": self.last}
        return {**vars(self.mark), **tokens, "text": self.text}

    @property
    def where(self) -> str:
        """The name of the file, with page and section, or else a percentage."""
        mark = self.mark
        parts = [_short(mark.source)]
        if mark.page is not None:
            parts.append(f"page {mark.page}")
        if mark.section is not None:
            parts.append(_short(mark.section))
        if len(parts) == 1:
            parts.append(f"at {100 * self.place:.0f} %")
        return ", ".join(parts)


class PassageTable:
    """The passages in an archive's file.

    Args:
        database (Database): the open file.
    """

    def __init__(self, database: Database):
        self.database = database
        # The first and the last token of a file in a document.
        self._spans: dict[tuple[int, str, int], tuple[int, int]] = {}

    def search(
        self, text: str, k: int = 5, documents: Iterable[int] | None = None
    ) -> list[Passage]:
        """The passages with words of a text, the best first, by BM25.

        Args:
            text (str): words, or a question; none of its characters is an operator.
            k (int): maximum number of passages.
            documents (list): numbers of the documents to search; all if ``None``.

        Raises:
            AllMemError: if the file is damaged.
        """
        if not (match := query(text)):
            return []
        select = f"""
            SELECT passages.*, documents.tokens FROM terms
            CROSS JOIN passages ON passages.id = terms.rowid
            CROSS JOIN documents ON documents.id = passages.document
            WHERE terms MATCH ? AND {_among(documents)}
            ORDER BY rank, terms.rowid LIMIT ?
        """
        return [self._passage(row) for row in self.database.rows(select, match, k)]

    def count(self, documents: Iterable[int] | None = None) -> int:
        """The number of passages.

        Args:
            documents (list): numbers of the documents that count; all if ``None``.
        """
        select = f"SELECT COUNT(*) FROM passages WHERE {_among(documents)}"
        number: int = self.database.rows(select)[0][0]
        return number

    def matches(self, text: str, documents: Iterable[int] | None = None) -> int:
        """The number of passages with all words of a text.

        Args:
            text (str): words; none of its characters is an operator.
            documents (list): numbers of the documents to search; all if ``None``.
        """
        words = dict.fromkeys(terms(text))
        if not words:
            return 0
        select = f"""
            SELECT COUNT(*) FROM terms JOIN passages ON passages.id = terms.rowid
            WHERE terms MATCH ? AND {_among(documents)}
        """
        match = " AND ".join(f'"{word}"' for word in words)
        number: int = self.database.rows(select, match)[0][0]
        return number

    def passages(self, entry: Entry, first: int = 0) -> Iterator[Passage]:
        """The passages of a document, in order.

        Args:
            entry (Entry): the document.
            first (int): number of the first passage.
        """
        select = (
            f"{PASSAGES} WHERE document = ? AND number BETWEEN ? AND ? ORDER BY number"
        )
        while rows := self.database.rows(select, entry.id, first, first + 99):
            yield from map(self._passage, rows)
            first += 100

    def texts(self, documents: Iterable[int]) -> list[tuple[int, str]]:
        """The ids and texts of all passages of some documents."""
        select = f"SELECT id, body FROM passages WHERE {_among(documents)} ORDER BY id"
        return self.database.rows(select)

    def get(self, ids: Iterable[int]) -> list[Passage]:
        """Passages by their ids."""
        select = f"{PASSAGES} WHERE passages.id = ?"
        return [self._passage(self.database.rows(select, id)[0]) for id in ids]

    def _passage(self, row: Any) -> Passage:
        _, document, number, first, last, source, page, section, offset, text, size = (
            row
        )
        if (key := (document, source, size)) not in self._spans:
            select = """
                SELECT MIN(first), MAX(last) FROM passages
                WHERE document = ? AND source = ?
            """
            self._spans[key] = self.database.rows(select, document, source)[0]
        start, end = self._spans[key]
        mark = Mark(source, page, section, offset)
        place = (first - start) / max(1, end - start + 1)
        return Passage(text, mark, document, number, first, last, place)


def _among(documents: Iterable[int] | None) -> str:
    """A condition for passages of some documents; all if ``None``."""
    if documents is None:
        return "TRUE"
    return f"document IN ({', '.join(str(int(x)) for x in documents)})"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 4] + " ..."
