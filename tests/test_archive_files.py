"""The file of an archive: damage, crashes, full disks, other processes, its size."""

import functools
import gzip
import inspect
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import alone, peak, run, start
from test_tokens import PROSE, build, gpt2
from tokenizers import Tokenizer

from allmem_mlx.archive import database, schema
from allmem_mlx.archive.archive import Archive
from allmem_mlx.archive.cutting import passages
from allmem_mlx.cli.archive_flags import check_archive, open_archive
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError

resource = pytest.importorskip("resource")


class Characters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text, add_special_tokens=False, verbose=False):
        return [*map(ord, text)]

    def get_vocab(self):
        return {}


# How the processes that the tests start begin.
COMMON = f"""
import os, re, resource, sys
from allmem_mlx.archive.archive import Archive
from allmem_mlx.documents import Document
from allmem_mlx.errors import AllMemError

{inspect.getsource(Characters)}
"""
QUESTIONS = ["import", "the statement", "expressions of a class", "locker"]


def create(path) -> Archive:
    return Archive.open(path, Characters(), create=True)


def write(folder: Path, name: str, text: str) -> Document:
    (folder / name).write_text(text)
    return Document(folder / name)


def content(archive: Archive):
    """All that it has, and what is found in it."""
    entries = archive.documents()
    return [
        [(x, [*archive.passages(x)], sum(archive.tokens(x), [])) for x in entries],
        [archive.search(question, 9) for question in QUESTIONS],
        archive.count(),
    ]


def refusal(path, *words: str, creating: bool = False) -> str:
    """The message, of one line; the file stays as it is."""
    path = Path(path)
    before = path.read_bytes() if os.path.isfile(path) else None
    files = set(os.listdir(path.parent))
    with pytest.raises(AllMemError) as error:
        with closing(create(path) if creating else Archive.open(path)) as archive:
            content(archive)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and repr(str(path)) in message
    for word in words:
        assert word in message, message
    if before is not None:
        assert path.read_bytes() == before
    assert set(os.listdir(path.parent)) == files
    return message


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of an archive of three documents, and what it has."""
    folder = tmp_path_factory.mktemp("saved")
    with closing(create(folder / "book.archive")) as archive:
        for number in range(3):
            text = PROSE[number * 7000 : (number + 1) * 7000]
            archive.add(write(folder, f"{number}.txt", text), True)
        return folder / "book.archive", content(archive)


@pytest.fixture
def book(saved, tmp_path):
    """A copy of it."""
    return Path(shutil.copy(saved[0], tmp_path / "book.archive"))


# Damage.


def assert_refused_or_the_same(path: Path, data: bytes, expected) -> bool:
    """Whether it was refused."""
    path.write_bytes(data)
    for opened in (lambda: Archive.open(path), lambda: create(path)):
        try:
            with closing(opened()) as archive:
                assert content(archive) == expected
                refused = False
        except AllMemError as error:
            assert len(str(error).splitlines()) == 1
            refused = True
        assert path.read_bytes() == data and os.listdir(path.parent) == [path.name]
    return refused


def test_200_bits(saved, book):
    """Each is told, or changes nothing: there are bytes that are not used."""
    good, expected = saved[0].read_bytes(), saved[1]
    rng, refused = random.Random(0), 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        refused += assert_refused_or_the_same(book, bytes(bad), expected)
    assert refused > 50


def test_bits_of_the_first_page(saved, book):
    """Which says what the tables are, and what SQLite's messages quote."""
    good, expected = saved[0].read_bytes(), saved[1]
    rng = random.Random(0)
    for place in rng.sample(range(8 * 4096), 200):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        assert_refused_or_the_same(book, bytes(bad), expected)


def test_pages_that_are_lost(saved, book):
    """Or in the place of another."""
    good, expected = saved[0].read_bytes(), saved[1]
    pages = [good[at : at + 4096] for at in range(0, len(good), 4096)]
    for number in range(len(pages)):
        for other in (bytes(4096), pages[number - 1]):
            bad = [*pages[:number], other, *pages[number + 1 :]]
            assert assert_refused_or_the_same(book, b"".join(bad), expected)


def test_truncated(saved, book):
    good, expected = saved[0].read_bytes(), saved[1]
    rng = random.Random(0)
    lengths = {1, 15, 16, 17, 99, 100, 101, 511, 512, 4095, 4096, len(good) - 1}
    lengths |= set(range(8192, len(good), 8192)) | set(rng.sample(range(len(good)), 30))
    for length in lengths:
        refused = assert_refused_or_the_same(book, good[:length], expected)
        assert refused or length > len(good) - 4096  # of which the end is not used


def test_the_checksum_is_of_all_tables(book):
    """Every column of every row, and the tables themselves."""
    changes = [
        "UPDATE documents SET name = 'x' WHERE id = 1",
        "UPDATE passages SET page = 1 WHERE id = 3",
        "UPDATE passages SET body = body || ' ' WHERE id = 3",
        "UPDATE blocks SET ids = zeroblob(9) WHERE document = 2",
        "DELETE FROM terms_docsize WHERE id = 3",
        "DELETE FROM passages WHERE id = 3",
        "UPDATE meta SET value = 'x' WHERE name = 'tokenizer'",
        "INSERT INTO terms (rowid, body) VALUES (9999, 'locker')",
        "CREATE INDEX x ON passages (body)",
        "CREATE TRIGGER x AFTER INSERT ON passages BEGIN SELECT 1; END",
        "DROP TABLE terms",
    ]
    good = book.read_bytes()
    for change in changes:
        book.write_bytes(good)
        with closing(sqlite3.connect(book)) as connection:
            connection.execute(change)
            connection.commit()
        refusal(book, "damaged or incomplete")
        refusal(book, "damaged or incomplete", creating=True)


def test_a_command_verifies_an_archive_once(saved, book, monkeypatch):
    """Before the model is loaded, and not again when documents are added to it."""
    flags = {"archive": str(book), "no_archive": False, "load_state": None}
    args = Namespace(**flags, passages=None, passage_tokens=None)
    state = SimpleNamespace(documents={}, add_document=lambda key: None)
    calls, checksum = [], schema._checksum

    def counted(connection):
        calls.append(connection)
        return checksum(connection)

    monkeypatch.setattr(schema, "_checksum", counted)
    check_archive(args)
    with closing(open_archive(args, Characters(), state)) as archive:
        assert content(archive) == saved[1]
    assert len(calls) == 1


# Files that are something else.


def test_foreign_files(tmp_path):
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE meta (name, value)")
        connection.execute("INSERT INTO meta VALUES ('checksum', 'mine')")
        connection.commit()
    files = {
        "text": b"some words\n" * 500,
        "a word": b"word",
        "a byte": b"\n",
        "gzip": gzip.compress(b"some words"),
        "state": (90).to_bytes(8, "little") + b'{"__metadata__": {}}'.ljust(9000),
        "zeros": bytes(8192),
        "almost": b"SQLite format 3\0",
        "random": random.Random(0).randbytes(9000),
        "database": other.read_bytes(),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        for creating in (False, True):
            refusal(path, "is not an archive of allmem_mlx", creating=creating)


def test_a_newer_version(book):
    with closing(sqlite3.connect(book)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    for creating in (False, True):
        refusal(book, "version 2", "reads up to 1", creating=creating)


def test_no_files(tmp_path):
    """Of which none can be opened, or is waited for."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for creating in (False, True):
        refusal(tmp_path / "fifo", "is not a file", creating=creating)
        refusal(tmp_path / "folder", "is not a file", creating=creating)
        refusal("/dev/null", "is not a file", creating=creating)
        refusal(tmp_path / "loop", creating=creating)
        refusal(tmp_path / ("x" * 300), creating=creating)
    refusal(tmp_path / "missing", "does not exist")
    refusal(tmp_path / "two\nlines", "does not exist")
    with pytest.raises(AllMemError, match="check the name"):
        create(tmp_path / "nowhere" / "book.archive")


def test_an_empty_file(tmp_path):
    """It is no archive, but can be made one."""
    path = tmp_path / "book.archive"
    path.touch()
    refusal(path, "is not an archive")
    with closing(create(path)) as archive:
        archive.add(write(tmp_path, "a.txt", "some words"), True)
    with closing(Archive.open(path)) as archive:
        assert archive.search("words")


NAMES = {
    "not UTF-8": b"b\xffok",
    "Chinese": "第".encode(),
    "an address": b"a?mode=memory#c%41&d=e.archive",
    "two lines": b"two\nlines",
    "quoted": b"'x' \"y\"",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names(tmp_path, name):
    """Of files that SQLite could take for something else, and that are not UTF-8."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    document = write(tmp_path, "a.txt", PROSE[:3000])
    try:
        with closing(create(path)) as archive:
            archive.add(document, True)
            expected = content(archive)
    except AllMemError:  # a file system that has no such names
        assert sys.platform == "darwin" and name == b"b\xffok"
        return
    assert os.listdir(os.fsencode(folder)) == [name]
    with closing(Archive.open(str(path))) as archive:
        assert content(archive) == expected
    path.write_text("something else")
    message = refusal(path, "is not an archive")
    message.encode()  # it can be printed


def test_a_document_whose_name_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffok.txt"))
    with suppress(OSError):
        path.write_text("some words")
    if not path.exists():
        pytest.skip("a file system that has no such names")
    with closing(create(tmp_path / "book.archive")) as archive:
        archive.add(Document(path), True)
        expected = content(archive)
    with closing(Archive.open(tmp_path / "book.archive")) as archive:
        assert content(archive) == expected
        assert archive.search("words")[0].mark.source == "b\ufffdok.txt"


def test_without_fts5(saved, monkeypatch, tmp_path):
    class Without(sqlite3.Connection):
        def execute(self, sql, *values):
            if "fts5" in sql:
                raise sqlite3.OperationalError("no such module: fts5")
            return super().execute(sql, *values)

    connect = functools.partial(sqlite3.connect, factory=Without)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    for opened in (
        lambda: Archive.open(saved[0]),
        lambda: create(tmp_path / "new.archive"),
        lambda: Archive.temporary(Characters()),
    ):
        with pytest.raises(AllMemError) as error:
            opened()
        message = str(error.value)
        assert len(message.splitlines()) == 1
        assert "FTS5" in message and "python.org" in message
        assert "--no-archive" in message
    assert not os.listdir(tmp_path)


# Reading only.


def test_opened_to_be_read(saved, book, tmp_path):
    """Nothing can be added, and nothing is written."""
    before = book.read_bytes()
    with closing(Archive.open(book, Characters())) as archive:
        assert content(archive) == saved[1]
        with pytest.raises(AllMemError, match="read-only"):
            archive.add(write(tmp_path, "a.txt", "more words"), True)
        assert content(archive) == saved[1]
    assert book.read_bytes() == before


@contextmanager
def not_root():
    """Whom modes of files do not stop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("modes", [(0o444, 0o755), (0o644, 0o555), (0o444, 0o555)])
def test_read_only(saved, modes):
    """A file, its folder, or both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = write(folder, "a.txt", "more words")
        book = Path(shutil.copy(saved[0], folder / "book.archive"))
        before = book.read_bytes()
        for path, mode in zip((book, folder), modes, strict=True):
            if os.geteuid() == 0:
                os.chown(path, 65534, -1)
            path.chmod(mode)
        with not_root():
            with closing(Archive.open(book)) as archive:
                assert content(archive) == saved[1]
            with closing(create(book)) as archive:
                with pytest.raises(AllMemError) as error:
                    archive.add(document, True)
                assert content(archive) == saved[1]
        folder.chmod(0o755)
        message = str(error.value)
        assert len(message.splitlines()) == 1 and repr(str(book)) in message
        assert "read-only" in message or "whether you may write there" in message
        assert book.read_bytes() == before


def test_what_may_not_be_read(saved):
    with tempfile.TemporaryDirectory() as name:
        book = Path(shutil.copy(saved[0], name))
        book.chmod(0)
        Path(name).chmod(0o555)
        with not_root():
            for opened in (lambda: Archive.open(book), lambda: create(book)):
                with pytest.raises(AllMemError, match="cannot be opened"):
                    opened()
        Path(name).chmod(0o755)


# Full disks.


@pytest.fixture
def limit():
    """Sets the most bytes that a file of this process may have."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("more", [0, 4096, 20_000, 100_000])
def test_a_full_disk(saved, book, tmp_path, limit, more):
    """What is being added is lost, and what was there is not."""
    before, size = book.read_bytes(), book.stat().st_size
    document = write(tmp_path, "more.txt", PROSE[:100_000])
    with closing(create(book)) as archive:
        for adding in (
            lambda: archive.add(document, True),
            lambda: list(archive.stream(document, "a stream", True)),
        ):
            limit(size + more)
            with pytest.raises(AllMemError, match="cannot be written") as error:
                adding()
            archive.rollback()
            limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            assert len(str(error.value).splitlines()) == 1
            assert content(archive) == saved[1]
        assert book.read_bytes() == before
        entry = archive.add(document, True)
        assert entry.complete and entry.tokens == 100_000
    with closing(Archive.open(book)) as archive:
        assert content(archive)[0][:3] == saved[1][0]


@pytest.mark.parametrize("size", [0, 4096, 30_000])
def test_a_disk_that_is_full_from_the_start(tmp_path, limit, size):
    """Nothing stays behind that would not be opened again."""
    path = tmp_path / "book.archive"
    document = write(tmp_path, "a.txt", PROSE[:100_000])
    limit(size)
    with pytest.raises(AllMemError, match="cannot be written") as error:
        with closing(create(path)) as archive:
            archive.add(document, True)
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert len(str(error.value).splitlines()) == 1
    with closing(create(path)) as archive:
        assert archive.add(document, True).complete


def test_no_more_pages(saved, book, tmp_path):
    """As SQLite itself says that a disk is full."""
    document = write(tmp_path, "more.txt", PROSE[:100_000])
    with closing(create(book)) as archive:
        pages = archive.database.connection.execute("PRAGMA page_count").fetchone()[0]
        archive.database.connection.execute(f"PRAGMA max_page_count = {pages + 9}")
        with pytest.raises(AllMemError, match="No space left"):
            archive.add(document, True)
        assert content(archive) == saved[1]
        archive.database.connection.execute("PRAGMA max_page_count = 99999")
        assert archive.add(document, True).complete


def test_a_commit_that_fails_while_a_document_is_read(book, tmp_path, limit):
    """What was committed before stays, and the same document goes on."""
    document = write(tmp_path, "more.txt", PROSE[:100_000])
    with closing(create(book)) as archive:
        stream = archive.stream(document, "a stream", True)
        known = len(next(stream))
        archive.commit()
        next(stream)
        next(stream)
        limit(book.stat().st_size)
        with pytest.raises(AllMemError, match="cannot be written"):
            archive.commit()
        with pytest.raises(AllMemError):
            list(stream)
        limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        archive.rollback()
        assert archive.entry("a stream").tokens == known
        list(archive.stream(document, "a stream", True))
    with closing(Archive.open(book)) as archive:
        assert archive.entry("a stream").tokens == 100_000


# Crashes.

# Adds all documents, some of them at once and some piece by piece.
ADD = f"""{COMMON}
path, *files = sys.argv[1:]
archive = Archive.open(path, Characters(), create=True)
archive.database.connection.execute("PRAGMA cache_size = 20")  # so few that it spills
for number, file in enumerate(files):
    if number % 2:
        archive.add(Document(file), True)
    else:
        for _ in archive.stream(Document(file), str(number), True):
            archive.commit()
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """What is there is whole, and the same command then goes on to the same end."""
    rng = random.Random(0)
    lengths = (34_000, 6_000, 18_000)
    texts = {f"{i}.txt": PROSE[i * 9999 :][:n] for i, n in enumerate(lengths)}
    documents = [write(tmp_path, name, text) for name, text in texts.items()]
    keys = []
    with closing(create(tmp_path / "whole.archive")) as archive:
        for number, document in enumerate(documents):
            if number % 2:
                keys.append(archive.add(document, True).key)
            else:
                list(archive.stream(document, str(number), True))
                keys.append(str(number))
        whole = content(archive)
    cuts = [[x.text for x in passages(x.parts())] for x in documents]

    path = tmp_path / "killed.archive"
    files = [tmp_path / name for name in texts]
    for _ in range(2):  # the first may wait for what it imports
        began = time.monotonic()
        assert run("-c", ADD, path, *files).returncode == 0
        duration = time.monotonic() - began
        path.unlink()
    kills, places = 0, set()
    for _ in range(150):
        if kills == 30:
            break
        process = start("-c", ADD, path, *files)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        code = process.wait()
        kills += code == -signal.SIGKILL
        duration *= 1.05 if code else 0.8  # what is left takes less time
        if not path.exists():
            continue
        with closing(create(path)) as archive:  # which may not have been made one
            known = content(archive)[0]
            places.add(tuple(entry.tokens for entry, _, _ in known))
        with closing(Archive.open(path)) as archive:
            assert content(archive)[0] == known
        for entry, found, ids in known:
            number = keys.index(entry.key)
            text = texts[f"{number}.txt"]
            assert ids == [*map(ord, text[: len(ids)])] and entry.tokens == len(ids)
            bodies = [x.text for x in found]
            assert bodies == cuts[number][: len(bodies)]
            if entry.complete or number % 2:  # which was added at once
                assert entry.complete and len(ids) == len(text)
                assert bodies == cuts[number]
        if code == 0:
            path.unlink()
    assert kills == 30 and len(places) > 2, (kills, duration, places)
    assert run("-c", ADD, path, *files).returncode == 0
    with closing(Archive.open(path)) as archive:
        assert content(archive) == whole


def spilling(path: Path, document: Document):
    """An archive, and what is streamed into it: so much that a part is in the file."""
    archive = create(path)
    archive.database.connection.execute("PRAGMA cache_size = 5")
    stream = archive.stream(document, "a stream", True)
    next(stream)
    return archive, stream


@pytest.mark.parametrize("creating", [False, True])
def test_what_a_crash_left_is_taken_back(saved, book, tmp_path, creating):
    """By whoever opens the file first."""
    crash = tmp_path / "crash"
    crash.mkdir()
    document = write(tmp_path, "more.txt", PROSE[:100_000])
    archive, stream = spilling(book, document)
    for file in tmp_path.glob("book.archive*"):
        shutil.copy(file, crash)
    stream.close()
    archive.close()
    path = crash / "book.archive"
    assert path.with_name("book.archive-journal").stat().st_size
    assert path.read_bytes() != saved[0].read_bytes()
    with closing(create(path) if creating else Archive.open(path)) as archive:
        assert content(archive) == saved[1]
    assert path.read_bytes() == saved[0].read_bytes()
    assert os.listdir(crash) == ["book.archive"]


def test_a_crash_of_which_a_half_is_lost(saved, book, tmp_path):
    """Without the journal that belongs to it, it is refused."""
    document = write(tmp_path, "more.txt", PROSE[:100_000])
    archive, stream = spilling(book, document)
    shutil.copy(book, tmp_path / "alone")
    stream.close()
    archive.close()
    refusal(tmp_path / "alone", "damaged or incomplete")


# Several processes.

WRITER = f"""{COMMON}
path, *files = sys.argv[1:]
archive = Archive.open(path, Characters(), create=True)
for file in files:
    stream = archive.stream(Document(file), file, True)
    next(stream)
    print("writing", flush=True)
    sys.stdin.readline()
    for _ in stream:
        pass
    print("done", flush=True)
"""


@pytest.fixture
def writer(book, tmp_path):
    """Another process, that is writing to it."""
    write(tmp_path, "other.txt", PROSE[:30_000])
    files = book, tmp_path / "other.txt"
    process = start("-c", WRITER, *files, stdin=subprocess.PIPE, fresh=True)
    assert process.stdout.readline() == b"writing\n"
    yield process
    process.stdin.close()
    assert process.wait(20) == 0


def test_a_second_writer(saved, book, writer, tmp_path, monkeypatch):
    """It says so, once it waited. Who reads sees what was there."""
    monkeypatch.setattr(database, "BUSY", 0.2)
    document = write(tmp_path, "mine.txt", "my words")
    with closing(create(book)) as archive:
        assert content(archive) == saved[1]
        for adding in (
            lambda: archive.add(document, True),
            lambda: list(archive.stream(document, "a stream", True)),
        ):
            with pytest.raises(AllMemError, match="by another process") as error:
                adding()
            assert len(str(error.value).splitlines()) == 1
        with closing(Archive.open(book)) as reader:
            assert content(reader) == saved[1]
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == b"done\n"
        assert archive.add(document, True).complete
        assert [x.name for x in archive.documents()][3:] == [
            repr(str(tmp_path / "other.txt")),
            repr(str(tmp_path / "mine.txt")),
        ]


def test_a_second_writer_that_waits(book, writer, tmp_path, monkeypatch):
    """Long enough is not told to wait."""
    monkeypatch.setattr(database, "BUSY", 60)
    document = write(tmp_path, "mine.txt", "my words")
    with closing(create(book)) as archive:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert archive.add(document, True).complete
        assert len(archive.documents()) == 5


def test_copied_over_what_is_being_written(saved, book, writer, tmp_path, monkeypatch):
    """One line, too, and no waiting for ever."""
    monkeypatch.setattr(database, "BUSY", 0.2)
    with closing(Archive.temporary(Characters())) as archive:
        archive.add(write(tmp_path, "mine.txt", "my words"), True)
        with closing(create(book)) as other:
            with pytest.raises(AllMemError, match="by another process"):
                archive.copy(other)
            assert content(other) == saved[1]


def test_read_while_much_is_written(book, tmp_path, monkeypatch):
    """More than the writer can hold: then a reader cannot read either, and is told."""
    monkeypatch.setattr(database, "BUSY", 0.1)
    archive, stream = spilling(book, write(tmp_path, "more.txt", PROSE[:100_000]))
    with pytest.raises(AllMemError, match="by another process") as error:
        Archive.open(book)
    assert len(str(error.value).splitlines()) == 1
    list(stream)
    archive.close()
    with closing(Archive.open(book)) as reader:
        assert len(reader.documents()) == 4


def test_a_commit_while_an_archive_is_opened(saved, book, tmp_path, monkeypatch):
    """Waits until its checksum is verified, which would be that of two states."""
    monkeypatch.setattr(database, "BUSY", 0.1)
    writer, checksum = create(book), schema._checksum
    next(writer.stream(write(tmp_path, "mine.txt", "my words"), "a stream", True))

    def commit_first(connection):
        monkeypatch.setattr(schema, "_checksum", checksum)
        with pytest.raises(AllMemError, match="by another process"):
            writer.commit()
        return checksum(connection)

    monkeypatch.setattr(schema, "_checksum", commit_first)
    with closing(writer), closing(Archive.open(book)) as archive:
        assert content(archive) == saved[1]


def test_made_by_two_at_once(tmp_path):
    """Each found it empty."""
    path = tmp_path / "book.archive"
    both = [database.connect(path, create=True) for _ in range(2)]
    assert all(map(schema.is_empty, both))
    for connection in both:
        schema.make_tables(connection, "a tokenizer")
        schema.check_version(connection, "it")
        schema.check_rows(connection)
    for connection in both:
        connection.close()


def test_four_processes_at_once(tmp_path):
    """Each adds a document to an archive that is not there yet."""
    path = tmp_path / "book.archive"
    processes = []
    for number in range(4):
        write(tmp_path, f"{number}.txt", PROSE[number * 9000 : (number + 1) * 9000])
        processes.append(start("-c", WRITER, path, tmp_path / f"{number}.txt"))
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    with closing(Archive.open(path)) as archive:
        assert len(archive.documents()) == 4
        assert all(entry.complete for entry in archive.documents())
        assert all(entry.tokens == 9000 for entry in archive.documents())


# Memory and size.


class Fast(Characters):
    def __init__(self, file: Path):
        self.backend_tokenizer = Tokenizer.from_file(str(file))

    def encode(self, text, add_special_tokens=False, verbose=False):
        return self.backend_tokenizer.encode(text, add_special_tokens=False).ids


def sizes(tokenizer: Path, *files: Path) -> list[tuple[int, int, int]]:
    """Tokens of files, bytes of their archives, and the largest size of the process."""
    found = []
    for file in files:
        path = file.with_suffix(".archive")
        with closing(Archive.open(path, Fast(tokenizer), create=True)) as archive:
            entry = archive.add(Document(file), True)
        found.append((entry.tokens, path.stat().st_size, peak()))
    return found


SEARCH = """
import sys
from allmem_mlx.archive.archive import Archive
archive = Archive.open(sys.argv[1])
for question in ("where is the import statement", "class", "locker 4471 of a class"):
    assert archive.search(question, 8)
modules = {name.split(".")[0] for name in sys.modules}
sys.path.append("tests")
from processes import peak
print(peak(), *modules)
"""


@pytest.mark.slow
def test_memory_and_size(tmp_path):
    """Of ten times as many tokens: the same memory, and bytes in proportion."""
    build(gpt2).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    rng, words = random.Random(0), re.findall(r"[A-Za-z]+", PROSE)
    files = []
    for tokens in (50_000, 500_000):
        text = "".join(
            f"{' '.join(rng.choices(words, k=rng.randrange(4, 30)))}. "
            for _ in range(tokens // 35)
        )
        write(tmp_path, f"{tokens}.txt", text)
        files.append(tmp_path / f"{tokens}.txt")
    short, long = alone(sizes, tmp_path / "tokenizer.json", *files)
    assert long[0] > 9 * short[0] and short[0] > 40_000
    assert long[2] < short[2] + 30 * 2**20, (short, long)
    bytes_per_token = [size / tokens for tokens, size, _ in (short, long)]
    assert max(bytes_per_token) < 15, bytes_per_token
    assert bytes_per_token[1] < bytes_per_token[0] + 0.5, bytes_per_token

    path = files[1].with_suffix(".archive")
    used, *modules = run("-c", SEARCH, path, fresh=True).stdout.decode().split()
    assert not {"mlx", "mlx_lm", "transformers", "torch", "numpy"} & set(modules)
    assert int(used) < 100 * 2**20, used
