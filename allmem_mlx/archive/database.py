"""The SQLite file of an archive: its tables, its checksum, and what can be wrong."""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from ..errors import AllMemError, reason


class ArchiveError(AllMemError):
    """An archive that cannot be read or written."""


APPLICATION = int.from_bytes(b"alma", "big")  # of the file's header
VERSION = 1
BUSY = 5.0  # seconds to wait for another process

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    complete INTEGER NOT NULL
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents (id),
    number INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    source TEXT NOT NULL,
    page INTEGER,
    section TEXT,
    offset INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (document, number)
);
CREATE TABLE blocks (
    document INTEGER NOT NULL REFERENCES documents (id),
    number INTEGER NOT NULL,
    ids BLOB NOT NULL,
    PRIMARY KEY (document, number)
);
CREATE TABLE summaries (
    document INTEGER NOT NULL REFERENCES documents (id),
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    maker TEXT NOT NULL,
    body TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (document, first, last, maker)
);
CREATE VIRTUAL TABLE terms USING fts5 (body, content = '', tokenize = 'porter ascii');
"""

# Everything that a checksum covers; the index of terms is in tables of its own. Not the
# summaries, which are kept one by one and can be made again: each has its own.
CHECKED = (
    "SELECT * FROM documents ORDER BY id",
    "SELECT * FROM passages ORDER BY id",
    "SELECT * FROM blocks ORDER BY document, number",
    "SELECT * FROM terms_data ORDER BY id",
    "SELECT * FROM terms_idx ORDER BY segid, term",
    "SELECT * FROM terms_docsize ORDER BY id",
    "SELECT * FROM terms_config ORDER BY k",
    "SELECT * FROM meta WHERE name <> 'checksum' ORDER BY name",
    "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name",
)


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


def connect(path: Path | None, create: bool) -> sqlite3.Connection:
    """Opens a file, or a temporary one that is gone when it is closed.

    Args:
        path (Path): the file; ``None`` for a temporary one.
        create (bool): write to it, and make it if it is not there; else it is only
            read.

    Raises:
        ArchiveError: if it is missing, or no file.
        sqlite3.Error: see :func:`errors`.
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
        # Even to be read it is opened for writing, if that is allowed, so that SQLite
        # takes back what a process left half done.
        mode = "rwc" if create else "rw"
        address = f"file:{quote(os.path.abspath(os.fsencode(path)))}?mode={mode}"
        connection = sqlite3.connect(
            address, timeout=BUSY, isolation_level=None, uri=True
        )
        connection.execute(f"PRAGMA query_only = {not create}")
    connection.execute("PRAGMA cache_size = -8000")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def begin(connection: sqlite3.Connection) -> None:
    """Starts to write, alone."""
    connection.execute("BEGIN IMMEDIATE")


def make_tables(connection: sqlite3.Connection, tokenizer: str) -> None:
    """Makes an empty file an archive; see :func:`is_empty`."""
    begin(connection)
    if not is_empty(connection):  # another process was faster
        connection.execute("ROLLBACK")
        return
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('tokenizer', ?)", (tokenizer,))
    commit(connection)


def commit(connection: sqlite3.Connection) -> None:
    """Makes everything that was written a part of the file, with its checksum, or
    nothing."""
    # FTS5 writes at a savepoint what it holds back until a commit.
    connection.execute("SAVEPOINT whole")
    connection.execute("RELEASE whole")
    connection.execute(
        "INSERT OR REPLACE INTO meta VALUES ('checksum', ?)", (checksum(connection),)
    )
    connection.execute("COMMIT")


def checksum(connection: sqlite3.Connection) -> str:
    """SHA-256 over every row of every table, and what the tables are."""
    running = hashlib.sha256()
    for select in CHECKED:
        for row in connection.execute(select):
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                running.update(len(data).to_bytes(8, "little"))
                running.update(data)
    return running.hexdigest()


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has no tables."""
    return not connection.execute("SELECT * FROM sqlite_master LIMIT 1").fetchall()


def check(connection: sqlite3.Connection, name: str) -> None:
    """Refuses what is no whole archive of this version.

    Raises:
        ArchiveError: naming what is wrong.
        sqlite3.Error: see :func:`errors`.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise ArchiveError(f"{name} is not an archive of allmem_mlx")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise ArchiveError(
            f"{name} has format version {version}; this version of allmem_mlx reads up "
            f"to {VERSION}"
        )
    row = connection.execute("SELECT value FROM meta WHERE name = 'checksum'")
    if row.fetchone() != (checksum(connection),):
        raise sqlite3.DatabaseError("the checksum is wrong")
    # What leads to the rows, too. Not of the virtual table: some versions of SQLite
    # write to it then.
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
    for (table,) in connection.execute(tables).fetchall():
        (result,) = connection.execute(f"PRAGMA integrity_check({table})").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)


def copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Makes one file equal to another."""

    def progress(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error  # sqlite3 would try again, for ever

    both = (source, target)
    files = [x.execute("PRAGMA database_list").fetchone()[2] or x for x in both]
    if files[0] != files[1]:
        source.backup(target, progress=progress)


@contextmanager
def errors(name: str) -> Iterator[None]:
    """What SQLite says, as one line.

    Args:
        name (str): what messages call the archive.

    Raises:
        ArchiveError: for every error of SQLite that is not the program's.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.Error, UnicodeDecodeError) as error:  # messages quote the file
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = reason(error)
        raise ArchiveError(
            {
                sqlite3.SQLITE_NOTADB: f"{name} is not an archive of allmem_mlx",
                sqlite3.SQLITE_BUSY: f"{name} is being written by another process; "
                "wait until it is done, or name another file with --archive",
                sqlite3.SQLITE_FULL: f"{name} cannot be written "
                f"({os.strerror(errno.ENOSPC)}); what it had is as it was",
                sqlite3.SQLITE_IOERR: f"{name} cannot be written or read ({text}); "
                "what it had is as it was",
                sqlite3.SQLITE_CANTOPEN: f"{name} cannot be opened; check the name and "
                "whether you may write there",
                sqlite3.SQLITE_READONLY: f"{name} cannot be written: it, or its "
                "folder, is read-only",
            }.get(
                code,
                f"{name} is damaged or incomplete ({text}); delete it and index the "
                "document again, or use another copy",
            )
        ) from error
