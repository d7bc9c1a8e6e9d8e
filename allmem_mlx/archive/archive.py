"""What was read, word for word, on disk: passages that can be searched, with the page.

The third level of memory: the window holds the last tokens, the fast weights what the
text is like, the archive everything else. RAM does not grow with it.
"""

import hashlib
import json
import secrets
import sqlite3
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

from ..documents import Document, Mark
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize_with_ends
from ..errors import AllMemError
from . import database
from .cutting import Cut, passages
from .terms import query, terms

BLOCK = 4096  # tokens in a row
LONGEST_NAME = 80  # characters of a file or section in a place
# Their rows, as Archive._passage takes them.
PASSAGES = """
    SELECT passages.*, documents.tokens FROM passages
    JOIN documents ON documents.id = passages.document
"""
CUTTING = 1  # changes with the rules of cutting.py and terms.py


@dataclass(frozen=True)
class Passage:
    """A passage of a document in an archive.

    Args:
        text (str): word for word.
        mark (Mark): where it is from; its offset counts the characters of the file's
            text before it.
        document (int): the document's number in the archive.
        number (int): of the passage in the document, from 0.
        first, last (int): its tokens, counted from the start of the document.
        place (float): share of its file before it, 0 to 1.
        count (int): neighbouring passages that it is made of.
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
        """Where it is from, its tokens and its text, for JSON."""
        tokens = {"first": self.first, "last": self.last}
        return {**vars(self.mark), **tokens, "text": self.text}

    @property
    def where(self) -> str:
        """Name and place, for people: page, section, or else a percentage."""
        mark = self.mark
        parts = [_short(mark.source)]
        if mark.page is not None:
            parts.append(f"page {mark.page}")
        if mark.section is not None:
            parts.append(_short(mark.section))
        if len(parts) == 1:
            parts.append(f"at {100 * self.place:.0f} %")
        return ", ".join(parts)


@dataclass(frozen=True)
class Entry:
    """A document in an archive.

    Args:
        id (int): its number in the archive.
        key (str): what a state calls it.
        name (str): what messages call it.
        tokens (int): how many it has.
        complete (bool): whether all of it is in the archive.
    """

    id: int
    key: str
    name: str
    tokens: int
    complete: bool


class Archive:
    """Documents on disk, to be searched and read again; one SQLite file.

    Use :meth:`open`, or :meth:`temporary`.

    Args:
        connection: the open file.
        tokenizer: of the model that reads; ``None`` only to search.
        name (str): what messages call it.
    """

    def __init__(self, connection: sqlite3.Connection, tokenizer: Any, name: str):
        self._connection, self.tokenizer, self.name = connection, tokenizer, name
        # Tokens of a file in a document: the first and the last.
        self._spans: dict[tuple[int, str, int], tuple[int, int]] = {}

    @classmethod
    def open(
        cls, path: str | Path, tokenizer: Any = None, create: bool = False
    ) -> "Archive":
        """Opens a file, once its checksum was found right.

        Args:
            path (str | Path): the file.
            tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one; needed to
                add documents. ``None`` only to search.
            create (bool): open it for adding, and make it if it is not there; else it
                is only read.

        Raises:
            AllMemError: naming what is wrong, if it cannot be opened, is something
                else, is damaged, comes from a newer version, is being written by
                another process, or was made with another tokenizer; if Python's SQLite
                has no FTS5.
        """
        name = repr(str(path))
        with database.errors(name):
            connection = database.connect(Path(path), create)
            try:
                if create and database.is_empty(connection):
                    database.make_tables(connection, fingerprint(tokenizer))
                database.check(connection, name)
                archive = cls(connection, tokenizer, name)
                archive._check_tokenizer()
            except BaseException:
                connection.close()
                raise
        return archive

    @classmethod
    def temporary(cls, tokenizer: Any) -> "Archive":
        """An archive on disk that is gone when it is closed."""
        name = "the temporary archive"
        with database.errors(name):
            connection = database.connect(None, create=True)
            database.make_tables(connection, fingerprint(tokenizer))
        return cls(connection, tokenizer, name)

    def _check_tokenizer(self) -> None:
        select = "SELECT value FROM meta WHERE name = 'tokenizer'"
        (known,) = self._connection.execute(select).fetchone()
        if self.tokenizer is not None and known != fingerprint(self.tokenizer):
            raise AllMemError(
                f"{self.name} was made with the tokenizer of another model; name "
                "another file with --archive"
            )

    def close(self) -> None:
        """Closes the file. What was added since the last commit is lost."""
        self._connection.close()

    def copy(self, other: "Archive") -> None:
        """Puts all of it in the place of what another archive has.

        Raises:
            ArchiveError: if that cannot be written; what it had is as it was.
        """
        self.commit()
        other.rollback()
        with database.errors(other.name):
            database.copy(self._connection, other._connection)

    def documents(self) -> list[Entry]:
        """The documents in the archive, in the order in which they were added."""
        rows = self._rows("SELECT * FROM documents ORDER BY id")
        return [Entry(*row) for row in rows]

    def entry(self, key: str) -> Entry | None:
        """The document that a state calls so."""
        return next((entry for entry in self.documents() if entry.key == key), None)

    def add(
        self,
        document: Document,
        allow_special_tokens: bool = False,
        progress: Callable[[int], Any] = lambda tokens: None,
    ) -> Entry:
        """Adds a document, or finds it if it was added before. All of it is in the file
        when this returns, or, whatever fails, nothing.

        Args:
            document (Document): read to its end.
            allow_special_tokens (bool): as for ``Document.pieces``.
            progress: called with the tokens so far.

        Raises:
            AllMemError: if a document cannot be read.
            ArchiveError: if the file cannot be written.
        """
        key = key_of(document, allow_special_tokens)
        if (known := self.entry(key)) is not None and known.complete:
            return known
        done = 0
        try:
            for ids in self.stream(document, key, allow_special_tokens):
                progress(done := done + len(ids))
        except BaseException:
            self.rollback()
            raise
        entry = self.entry(key)
        assert entry is not None
        return entry

    def stream(
        self, document: Document, key: str, allow_special_tokens: bool = False
    ) -> Iterator[list[int]]:
        """Adds a document while it is read: yields its tokens once they are added. They
        are a part of the file after :meth:`commit`, and at the end.

        A document that was added in part goes on where it ended; what is known of it
        must come again.

        Args:
            document (Document): what is added.
            key (str): what a state calls it; see :func:`key_of`.
            allow_special_tokens (bool): as for ``Document.pieces``.

        Raises:
            AllMemError: if a document cannot be read, or its beginning is not the one
                that is known.
            ArchiveError: if the file cannot be written.
        """
        with self._writing():
            adding = _Adding(self._connection, key, document.name)
        source, copy = tee(document.parts())
        cutter = passages(copy)
        cut = next(cutter, None)
        tokenizer = self.tokenizer
        if not allow_special_tokens:
            tokenizer = as_plain_text(tokenizer)
        pieces = tokenize_with_ends(
            (text for text, _ in source), tokenizer, on_change=document.count_cut
        )
        for ids, ends in pieces:
            cuts = []
            while cut is not None and ends and cut.end <= ends[-1]:
                cuts.append(cut)
                cut = next(cutter, None)
            with self._writing():
                adding.piece(ids, ends, cuts)
            yield ids
        with self._writing():
            adding.piece([], [], [cut, *cutter] if cut is not None else [])
            adding.end()
        self.commit()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of what is written inside, or nothing, becomes a part of what is to be
        committed."""
        with database.errors(self.name):
            if not self._connection.in_transaction:
                database.begin(self._connection)
            self._connection.execute("SAVEPOINT piece")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK TO piece")
                raise
            self._connection.execute("RELEASE piece")

    def commit(self) -> None:
        """Makes what was streamed so far a part of the file.

        Raises:
            ArchiveError: if the file cannot be written.
        """
        if self._connection.in_transaction:
            with database.errors(self.name):
                try:
                    database.commit(self._connection)
                except BaseException:
                    self.rollback()
                    raise

    def rollback(self) -> None:
        """Forgets what was streamed since the last commit."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def tokens(self, entry: Entry, start: int = 0) -> Iterator[list[int]]:
        """The tokens of a document, in lists of up to 4,096.

        Args:
            entry (Entry): the document.
            start (int): the first one.
        """
        number = start // BLOCK
        select = "SELECT ids FROM blocks WHERE document = ? AND number = ?"
        while rows := self._rows(select, entry.id, number):
            ids = _unpack(rows[0][0])
            if piece := ids[max(0, start - number * BLOCK) :]:
                yield piece
            number += 1

    def search(
        self, text: str, k: int = 5, documents: Iterable[int] | None = None
    ) -> list[Passage]:
        """The passages that have the words of a text, the best first, by BM25.

        Args:
            text (str): words, or a question; none of its characters is an operator.
            k (int): the most passages.
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
        return [self._passage(row) for row in self._rows(select, match, k)]

    def count(self, documents: Iterable[int] | None = None) -> int:
        """How many passages there are.

        Args:
            documents (list): numbers of the documents that count; all if ``None``.
        """
        select = f"SELECT COUNT(*) FROM passages WHERE {_among(documents)}"
        return self._rows(select)[0][0]

    def matches(self, text: str, documents: Iterable[int] | None = None) -> int:
        """How many passages have all the words of a text.

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
        return self._rows(select, " AND ".join(f'"{word}"' for word in words))[0][0]

    def summary(self, document: int, first: int, last: int, maker: str) -> str | None:
        """A summary that was kept; ``None`` if there is none, or it is damaged.

        Args:
            document (int): the document's number.
            first, last (int): tokens of the part.
            maker (str): a digest of what made it: the model, the prompt, the settings.
        """
        select = """
            SELECT body, checksum FROM summaries
            WHERE document = ? AND first = ? AND last = ? AND maker = ?
        """
        place = (document, first, last, maker)
        for body, checksum in self._rows(select, *place):
            if checksum == _checksum(*place, body):
                return body
        return None

    def keep_summary(
        self, document: int, first: int, last: int, maker: str, body: str
    ) -> None:
        """Makes a summary a part of the file, at once; see :meth:`summary`.

        Raises:
            ArchiveError: if the file cannot be written.
        """
        row = (document, first, last, maker, body)
        adding = self._connection.in_transaction  # of a document; it goes with it
        try:
            with self._writing():
                self._connection.execute(
                    "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, _checksum(*row)),
                )
            if not adding:
                with database.errors(self.name):
                    self._connection.execute("COMMIT")
        except BaseException:
            if not adding:
                self.rollback()
            raise

    def passages(self, entry: Entry, first: int = 0) -> Iterator[Passage]:
        """The passages of a document, in order.

        Args:
            entry (Entry): the document.
            first (int): number of the first one.
        """
        select = (
            f"{PASSAGES} WHERE document = ? AND number BETWEEN ? AND ? ORDER BY number"
        )
        while rows := self._rows(select, entry.id, first, first + 99):
            yield from map(self._passage, rows)
            first += 100

    def bodies(self, documents: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The ids and texts of all passages of some documents."""
        select = f"""
            SELECT id, body FROM passages
            WHERE {_among(documents)} AND id > ? ORDER BY id LIMIT 100
        """
        last = 0
        while rows := self._rows(select, last):
            yield from rows
            last = rows[-1][0]

    def get(self, ids: Iterable[int]) -> list[Passage]:
        """Passages by their ids."""
        select = f"{PASSAGES} WHERE passages.id = ?"
        return [self._passage(self._rows(select, number)[0]) for number in ids]

    def _passage(self, row: Any) -> Passage:
        _, document, number, first, last, source, page, section, offset, body, all_ = (
            row
        )
        if (key := (document, source, all_)) not in self._spans:
            select = """
                SELECT MIN(first), MAX(last) FROM passages
                WHERE document = ? AND source = ?
            """
            self._spans[key] = self._rows(select, document, source)[0]
        start, end = self._spans[key]
        mark = Mark(source, page, section, offset)
        place = (first - start) / max(1, end - start + 1)
        return Passage(body, mark, document, number, first, last, place)

    def _rows(self, select: str, *values: Any) -> list[Any]:
        with database.errors(self.name):
            return self._connection.execute(select, values).fetchall()


class _Adding:
    """A document on its way into the tables. What is there already must be equal."""

    def __init__(self, connection: sqlite3.Connection, key: str, name: str):
        self.connection = connection
        connection.execute(
            "INSERT OR IGNORE INTO documents VALUES (NULL, ?, ?, 0, 0)", (key, name)
        )
        (self.id,) = self._one("SELECT id FROM documents WHERE key = ?", key)
        self.number = 0  # of the next passage
        self.tokens = 0
        self.block: list[int] = []
        self.blocks = 0  # that are full
        self.ends: list[int] = []  # of the last tokens
        self.before = 0  # tokens before those

    def piece(self, ids: list[int], ends: list[int], cuts: list[Cut]) -> None:
        """Tokens, the characters that they end at, and the passages that end there."""
        self._count(len(ids))
        self.block += ids
        self.ends += ends
        while len(self.block) >= BLOCK:
            self._write(self.block[:BLOCK])
            self.block = self.block[BLOCK:]
            self.blocks += 1
        self._write(self.block)
        for cut in cuts:
            self._passage(cut)

    def _count(self, tokens: int) -> None:
        row = self._one("SELECT tokens, complete FROM documents WHERE id = ?", self.id)
        known, complete = row or (0, False)
        if known < self.tokens:  # a rollback took them
            raise database.ArchiveError(
                "a part of the document was lost, as the archive could not be written; "
                "read it again"
            )
        self.tokens += tokens
        if complete and self.tokens > known:
            raise _changed()
        self.connection.execute(
            "UPDATE documents SET tokens = ? WHERE id = ?",
            (max(self.tokens, known), self.id),
        )

    def _write(self, ids: list[int]) -> None:
        select = "SELECT ids FROM blocks WHERE document = ? AND number = ?"
        row = self._one(select, self.id, self.blocks)
        known = _unpack(row[0]) if row else []
        length = min(len(known), len(ids))
        if known[:length] != ids[:length]:
            raise _changed()
        if len(ids) > len(known):
            self.connection.execute(
                "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)",
                (self.id, self.blocks, _pack(ids)),
            )

    def _passage(self, cut: Cut) -> None:
        first = bisect_right(self.ends, cut.start)
        # Where several tokens end at one character, the last of them.
        reached = bisect_left(self.ends, cut.end)
        end = max([cut.end, *self.ends[reached : reached + 1]])
        last = bisect_right(self.ends, end) - 1
        select = "SELECT body FROM passages WHERE document = ? AND number = ?"
        known = self._one(select, self.id, self.number)
        if known is not None and known != (cut.text,):
            raise _changed()
        if known is None:
            mark = cut.mark
            cursor = self.connection.execute(
                "INSERT INTO passages VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(self.id, self.number, self.before + first, self.before + last),
                    *(mark.source, mark.page, mark.section, mark.offset, cut.text),
                ),
            )
            self.connection.execute(
                "INSERT INTO terms (rowid, body) VALUES (?, ?)",
                (cursor.lastrowid, " ".join(terms(cut.text))),
            )
        self.number += 1
        self.before += first
        self.ends = self.ends[first:]

    def end(self) -> None:
        cursor = self.connection.execute(
            "UPDATE documents SET complete = 1 WHERE id = ? AND tokens = ?",
            (self.id, self.tokens),
        )
        if not cursor.rowcount:
            raise _changed()

    def _one(self, select: str, *values: Any) -> Any:
        return self.connection.execute(select, values).fetchone()


def _among(documents: Iterable[int] | None) -> str:
    """A condition for passages of some documents; all if ``None``."""
    if documents is None:
        return "TRUE"
    return f"document IN ({', '.join(str(int(x)) for x in documents)})"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 4] + " ..."


def _changed() -> AllMemError:
    return AllMemError(
        "the document has changed since a part of it was read; name another file for "
        "the state"
    )


def _checksum(*row: Any) -> str:
    return hashlib.sha256(repr(row).encode()).hexdigest()


def _pack(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


def _unpack(data: bytes) -> list[int]:
    return array("I", data).tolist()


def key_of(document: Document, allow_special_tokens: bool = False) -> str:
    """What a state calls a document: a digest of its files; for standard input and
    pipes, which cannot be read twice, a random number."""
    digest = document.digest()
    if digest is None:
        return secrets.token_hex(32)
    text = f"{CUTTING} {bool(allow_special_tokens)} {digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # They change when it is used.
        text = json.dumps({**state, "padding": None, "truncation": None})
    else:
        text = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()
