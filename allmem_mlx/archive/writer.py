"""The writing of a document into an archive's tables."""

import sqlite3
from array import array
from bisect import bisect_left, bisect_right
from typing import Any

from ..errors import AllMemError
from .cutting import Cut
from .schema import ArchiveError
from .terms import terms

ROW = 4096  # tokens in a row of the table ``blocks``


class DocumentWriter:
    """Writes a document from its start. The part that an archive has must be equal.

    Args:
        connection: the open file.
        key (str): the document's name in states.
        name (str): its name in messages.
    """

    def __init__(self, connection: sqlite3.Connection, key: str, name: str):
        self.connection = connection
        connection.execute(
            "INSERT OR IGNORE INTO documents VALUES (NULL, ?, ?, 0, 0)", (key, name)
        )
        (self.id,) = self._one("SELECT id FROM documents WHERE key = ?", key)
        self.number = 0  # of the next passage
        self.tokens = 0
        self.row: list[int] = []
        self.rows = 0  # full ones
        self.ends: list[int] = []  # of the last tokens
        self.before = 0  # tokens before these

    def write(self, ids: list[int], ends: list[int], cuts: list[Cut]) -> None:
        """Writes tokens and the passages that end with them.

        Args:
            ids (list): the tokens.
            ends (list): the character at which each ends.
            cuts (list): the passages.
        """
        self._count(len(ids))
        self.row += ids
        self.ends += ends
        while len(self.row) >= ROW:
            self._write_row(self.row[:ROW])
            self.row = self.row[ROW:]
            self.rows += 1
        self._write_row(self.row)
        for cut in cuts:
            self._write_passage(cut)

    def _count(self, tokens: int) -> None:
        row = self._one("SELECT tokens, complete FROM documents WHERE id = ?", self.id)
        known, complete = row or (0, False)
        if known < self.tokens:  # after a rollback
            raise ArchiveError(
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

    def _write_row(self, ids: list[int]) -> None:
        select = "SELECT ids FROM blocks WHERE document = ? AND number = ?"
        row = self._one(select, self.id, self.rows)
        known = array("I", row[0]).tolist() if row else []
        length = min(len(known), len(ids))
        if known[:length] != ids[:length]:
            raise _changed()
        if len(ids) > len(known):
            self.connection.execute(
                "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)",
                (self.id, self.rows, array("I", ids).tobytes()),
            )

    def _write_passage(self, cut: Cut) -> None:
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

    def finish(self) -> None:
        """Marks the document as complete."""
        cursor = self.connection.execute(
            "UPDATE documents SET complete = 1 WHERE id = ? AND tokens = ?",
            (self.id, self.tokens),
        )
        if not cursor.rowcount:
            raise _changed()

    def _one(self, select: str, *values: Any) -> Any:
        return self.connection.execute(select, values).fetchone()


def _changed() -> AllMemError:
    return AllMemError(
        "the document has changed since a part of it was read; name another file for "
        "the state"
    )
