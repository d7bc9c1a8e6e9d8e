"""Documents on disk, word for word: passages that can be searched, with their places.

An archive is the third level of memory: the window holds the last tokens, the fast
weights what the text is like, the archive everything else. It takes no RAM.
"""

from array import array
from collections.abc import Callable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any

from ..documents import Document
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize
from ..errors import AllMemError
from . import schema
from .cutting import passages
from .database import Database
from .keys import document_key, fingerprint, sha256
from .passage import Entry, PassageTable
from .writer import ROW, DocumentWriter


class Archive(PassageTable):
    """Documents in an SQLite file, to be searched and read again.

    Use :meth:`open` or :meth:`temporary`.

    Args:
        database (Database): the open file.
        tokenizer: the model's tokenizer; ``None`` only to search.

    Attributes:
        name (str): its name in messages.
    """

    def __init__(self, database: Database, tokenizer: Any):
        super().__init__(database)
        self.tokenizer, self.name = tokenizer, database.name

    @classmethod
    def open(
        cls,
        path: str | Path,
        tokenizer: Any = None,
        create: bool = False,
        verify: bool = True,
    ) -> "Archive":
        """Opens a file.

        Args:
            path (str | Path): the file.
            tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one; needed to
                add documents. ``None`` only to search.
            create (bool): open it for writing, and make it if it does not exist.
            verify (bool): verify its checksum, for which all of it is read.

        Raises:
            AllMemError: if it cannot be opened, is something else, is damaged, comes
                from a newer version, is being written by another process, or was made
                with another tokenizer; if Python's SQLite has no FTS5.
        """
        database = Database(Path(path), create)
        connection = database.connection
        try:
            with database.errors():
                if create and schema.is_empty(connection):
                    schema.make_tables(connection, fingerprint(tokenizer))
            with database.snapshot():
                schema.check_version(connection, database.name)
                if verify:
                    schema.check_rows(connection)
            select = "SELECT value FROM meta WHERE name = 'tokenizer'"
            ((known,),) = database.rows(select)
            if tokenizer is not None and known != fingerprint(tokenizer):
                raise AllMemError(
                    f"{database.name} was made with the tokenizer of another model; "
                    "name another file with --archive"
                )
        except BaseException:
            database.close()
            raise
        return cls(database, tokenizer)

    @classmethod
    def temporary(cls, tokenizer: Any) -> "Archive":
        """An archive on disk that is gone when it is closed."""
        database = Database(None, create=True)
        with database.errors():
            schema.make_tables(database.connection, fingerprint(tokenizer))
        return cls(database, tokenizer)

    def close(self) -> None:
        """Closes the file. Changes since the last commit are lost."""
        self.database.close()

    def copy(self, other: "Archive") -> None:
        """Replaces the content of another archive with that of this one.

        Raises:
            ArchiveError: if the other cannot be written; it does not change then.
        """
        self.commit()
        other.rollback()
        self.database.copy(other.database)

    def documents(self) -> list[Entry]:
        """The documents in the archive, in the order in which they were added."""
        rows = self.database.rows("SELECT * FROM documents ORDER BY id")
        return [Entry(*row) for row in rows]

    def entry(self, key: str) -> Entry | None:
        """The document with a key; ``None`` if there is none."""
        return next((entry for entry in self.documents() if entry.key == key), None)

    def add(
        self,
        document: Document,
        allow_special_tokens: bool = False,
        progress: Callable[[int], Any] = lambda tokens: None,
        key: str | None = None,
        partly: bool = False,
    ) -> Entry:
        """Adds a document, or finds it if it was added before. All of it is committed
        when this returns, or, after an error, nothing.

        Args:
            document (Document): the document; it is read to its end.
            allow_special_tokens (bool): see ``Document.pieces``.
            progress: called with the tokens so far.
            key (str): its name in states. Default: :func:`.document_key`.
            partly (bool): if it turns out to be damaged, commit the part before that.

        Raises:
            AllMemError: if a document cannot be read.
            ArchiveError: if the file cannot be written.
        """
        key = key or document_key(document, allow_special_tokens)
        entry, done = self.entry(key), 0
        if entry is not None and entry.complete:
            return entry
        try:
            for ids in self.stream(document, key, allow_special_tokens):
                progress(done := done + len(ids))
        except BaseException as error:
            unreadable = isinstance(error, AllMemError)
            if partly and unreadable and not isinstance(error, schema.ArchiveError):
                self.commit()
            else:
                self.rollback()
            raise
        entry = self.entry(key)
        assert entry is not None
        return entry

    def stream(
        self, document: Document, key: str, allow_special_tokens: bool = False
    ) -> Iterator[list[int]]:
        """Adds a document while it is read: yields its tokens once they are added. They
        are committed by :meth:`commit`, and at the end.

        A document that was added in part is continued; its known part must come again.

        Args:
            document (Document): the document.
            key (str): its name in states; see :func:`.document_key`.
            allow_special_tokens (bool): see ``Document.pieces``.

        Raises:
            AllMemError: if a document cannot be read, or its beginning differs from the
                known part.
            ArchiveError: if the file cannot be written.
        """
        with self.database.writing():
            writer = DocumentWriter(self.database.connection, key, document.name)
        texts, parts = tee(document.parts())
        cuts = passages(parts)
        cut = next(cuts, None)
        tokenizer = self.tokenizer
        if not allow_special_tokens:
            tokenizer = as_plain_text(tokenizer)
        for ids, ends in tokenize(
            (text for text, _ in texts), tokenizer, on_change=document.count_cut
        ):
            ended = []
            while cut is not None and ends and cut.end <= ends[-1]:
                ended.append(cut)
                cut = next(cuts, None)
            with self.database.writing():
                writer.write(ids, ends, ended)
            yield ids
        with self.database.writing():
            writer.write([], [], [cut, *cuts] if cut is not None else [])
            writer.finish()
        self.commit()

    def commit(self) -> None:
        """Commits the documents streamed so far.

        Raises:
            ArchiveError: if the file cannot be written.
        """
        self.database.commit()

    def rollback(self) -> None:
        """Takes back everything streamed since the last commit."""
        self.database.rollback()

    def tokens(self, entry: Entry, start: int = 0) -> Iterator[list[int]]:
        """The tokens of a document, in lists of up to 4,096.

        Args:
            entry (Entry): the document.
            start (int): the first token.
        """
        number = start // ROW
        select = "SELECT ids FROM blocks WHERE document = ? AND number = ?"
        while rows := self.database.rows(select, entry.id, number):
            ids = array("I", rows[0][0]).tolist()
            if piece := ids[max(0, start - number * ROW) :]:
                yield piece
            number += 1

    def summary(self, document: int, first: int, last: int, maker: str) -> str | None:
        """A stored summary; ``None`` if there is none, or it is damaged.

        Args:
            document (int): the document's number.
            first, last (int): tokens of the part.
            maker (str): a digest of the model, the prompt and the settings.
        """
        select = """
            SELECT body, checksum FROM summaries
            WHERE document = ? AND first = ? AND last = ? AND maker = ?
        """
        place = (document, first, last, maker)
        rows: list[tuple[str, str]] = self.database.rows(select, *place)
        whole = (body for body, sum in rows if sum == sha256(repr((*place, body))))
        return next(whole, None)

    def store_summary(
        self, document: int, first: int, last: int, maker: str, body: str
    ) -> None:
        """Writes a summary to the file at once; see :meth:`summary`.

        Raises:
            ArchiveError: if the file cannot be written.
        """
        row = (document, first, last, maker, body)
        streaming = self.database.connection.in_transaction  # then it goes with that
        with self.database.writing():
            self.database.connection.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?, ?, ?)",
                (*row, sha256(repr(row))),
            )
        if not streaming:
            self.database.commit(checksum=False)
