"""The tables of an archive's SQLite file, and their checksum."""

import hashlib
import sqlite3

from ..errors import AllMemError


class ArchiveError(AllMemError):
    """An archive that cannot be read or written."""


APPLICATION = int.from_bytes(b"alma", "big")  # application_id of the file
VERSION = 1

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

# The rows of the checksum; the index of terms has tables of its own. Summaries are not
# among them: they are written one by one, can be made again, and have their own.
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


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has no tables."""
    return not connection.execute("SELECT * FROM sqlite_master LIMIT 1").fetchall()


def make_tables(connection: sqlite3.Connection, tokenizer: str) -> None:
    """Makes an empty file an archive; see :func:`is_empty`."""
    connection.execute("BEGIN IMMEDIATE")
    if not is_empty(connection):  # another process was faster
        connection.execute("ROLLBACK")
        return
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('tokenizer', ?)", (tokenizer,))
    write_checksum(connection)
    connection.execute("COMMIT")


def write_checksum(connection: sqlite3.Connection) -> None:
    """Updates the checksum, as the last change before a commit."""
    # FTS5 holds its changes back until a savepoint or a commit.
    connection.execute("SAVEPOINT whole")
    connection.execute("RELEASE whole")
    connection.execute(
        "INSERT OR REPLACE INTO meta VALUES ('checksum', ?)", (_checksum(connection),)
    )


def _checksum(connection: sqlite3.Connection) -> str:
    """The SHA-256 of every row of every table, and of the tables' definitions."""
    running = hashlib.sha256()
    for select in CHECKED:
        for row in connection.execute(select):
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                running.update(len(data).to_bytes(8, "little"))
                running.update(data)
    return running.hexdigest()


def check_version(connection: sqlite3.Connection, name: str) -> None:
    """Refuses a file that is no archive, or one of a newer version.

    Raises:
        ArchiveError: if it is one of these.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise ArchiveError(f"{name} is not an archive of allmem_mlx")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise ArchiveError(
            f"{name} has format version {version}; this version of allmem_mlx reads up "
            f"to {VERSION}"
        )


def check_rows(connection: sqlite3.Connection) -> None:
    """Verifies every row and every index.

    Raises:
        sqlite3.DatabaseError: if the file is damaged.
    """
    row = connection.execute("SELECT value FROM meta WHERE name = 'checksum'")
    if row.fetchone() != (_checksum(connection),):
        raise sqlite3.DatabaseError("the checksum is wrong")
    # The indices. Not of the virtual table: some versions of SQLite write to it then.
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
    for (table,) in connection.execute(tables).fetchall():
        (result,) = connection.execute(f"PRAGMA integrity_check({table})").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
