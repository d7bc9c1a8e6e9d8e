"""The SQLite file of an archive: opening, transactions, errors."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import AllMemError, reason
from .schema import ArchiveError, write_checksum

BUSY = 5.0  # seconds to wait for another process


class Database:
    """An SQLite file whose errors are reported in one line.

    Args:
        path (Path): the file; ``None`` for a temporary one that is gone when it is
            closed.
        create (bool): open the file for writing, and make it if it does not exist.

    Attributes:
        name (str): its name in messages.

    Raises:
        ArchiveError: if it cannot be opened.
        AllMemError: if this Python's SQLite has no full-text search.
    """

    def __init__(self, path: Path | None, create: bool):
        self.name = "the temporary archive" if path is None else repr(str(path))
        with self.errors():
            self.connection = connect(path, create)

    def close(self) -> None:
        self.connection.close()

    def rows(self, select: str, *values: Any) -> list[Any]:
        """The rows that a query finds."""
        with self.errors():
            return self.connection.execute(select, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All changes inside, or none, become part of a transaction; it begins here if
        there is none."""
        with self.errors():
            undo = "ROLLBACK TO piece"
            if not self.connection.in_transaction:
                self.connection.execute("BEGIN IMMEDIATE")
                undo = "ROLLBACK"
            self.connection.execute("SAVEPOINT piece")
            try:
                yield
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute(undo)
                raise
            self.connection.execute("RELEASE piece")

    def commit(self, checksum: bool = True) -> None:
        """Commits the transaction, if there is one, or else takes it back.

        Args:
            checksum (bool): whether rows that it covers were changed.
        """
        if self.connection.in_transaction:
            with self.errors():
                try:
                    if checksum:
                        write_checksum(self.connection)
                    self.connection.execute("COMMIT")
                except BaseException:
                    self.rollback()
                    raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All queries inside see one state of the file, whatever other processes
        write."""
        with self.errors():
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.rollback()

    def rollback(self) -> None:
        """Takes back the transaction, if there is one."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def copy(self, target: "Database") -> None:
        """Makes another file equal to this one."""

        def progress(status: int, remaining: int, total: int) -> None:
            if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error  # sqlite3 would try again forever

        both = (self.connection, target.connection)
        with target.errors():
            files = [x.execute("PRAGMA database_list").fetchone()[2] or x for x in both]
            if files[0] != files[1]:
                self.connection.backup(target.connection, progress=progress)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Reports an error of SQLite in one line.

        Raises:
            ArchiveError: for every error of SQLite except the program's own mistakes.
        """
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:  # messages quote the file
            code, name = getattr(error, "sqlite_errorcode", 0) & 0xFF, self.name
            text = reason(error)
            raise ArchiveError(
                {
                    sqlite3.SQLITE_NOTADB: f"{name} is not an archive of allmem_mlx",
                    sqlite3.SQLITE_BUSY: f"{name} is being written by another process; "
                    "wait until it is done, or name another file with --archive",
                    sqlite3.SQLITE_FULL: f"{name} cannot be written "
                    f"({os.strerror(errno.ENOSPC)}); its content has not changed",
                    sqlite3.SQLITE_IOERR: f"{name} cannot be written or read ({text}); "
                    "its content has not changed",
                    sqlite3.SQLITE_CANTOPEN: f"{name} cannot be opened; check the name "
                    "and whether you may write there",
                    sqlite3.SQLITE_READONLY: f"{name} cannot be written: it, or its "
                    "folder, is read-only",
                }.get(
                    code,
                    f"{name} is damaged or incomplete ({text}); delete it and index "
                    "the document again, or use another copy",
                )
            ) from error


def connect(path: Path | None, create: bool) -> sqlite3.Connection:
    """Opens a connection; see :class:`Database`.

    Raises:
        ArchiveError: if the file does not exist, or is not a regular file.
        sqlite3.Error: see :meth:`Database.errors`.
    """
    check_fts5()
    if path is None:
        connection = sqlite3.connect("", isolation_level=None)
    else:
        if not os.path.isfile(path):
            if os.path.exists(path):
                raise ArchiveError(f"{str(path)!r} is not a file; name another")
            if not create:
                raise ArchiveError(f"{str(path)!r} does not exist; check the name")
        elif os.path.getsize(path) == 1:  # which SQLite takes for an empty file
            raise ArchiveError(f"{str(path)!r} is not an archive of allmem_mlx")
        # Opened for writing even to be read, if that is allowed, so that SQLite takes
        # back an unfinished transaction of another process.
        mode = "rwc" if create else "rw"
        address = f"file:{quote(os.path.abspath(os.fsencode(path)))}?mode={mode}"
        connection = sqlite3.connect(
            address, timeout=BUSY, isolation_level=None, uri=True
        )
        connection.execute(f"PRAGMA query_only = {not create}")
    connection.execute("PRAGMA cache_size = -8000")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def check_fts5() -> None:
    """
    Raises:
        AllMemError: if this Python's SQLite has no full-text search.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE x USING fts5 (y)")
        except sqlite3.OperationalError:
            raise AllMemError(
                "an archive needs SQLite with FTS5, which this Python's SQLite "
                f"{sqlite3.sqlite_version} was built without; use a Python that has "
                "it, from python.org, Homebrew or conda, or go on with --no-archive"
            ) from None
