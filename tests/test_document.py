"""Documents as text: decoded, of several files, with marks of where it is from."""

import codecs
import gzip
import io
import os
import sys
import types
from pathlib import Path

import pytest
from processes import alone, peak
from test_tokens import PROSE, build, gpt2, smollm2
from transformers import AutoTokenizer

from allmem_mlx.documents import Document, source
from allmem_mlx.documents.encodings import SAMPLE
from allmem_mlx.errors import AllMemError, MissingLibrary, SettingError


def write(folder: Path, data: bytes) -> Path:
    path = folder / "book.txt"
    path.write_bytes(data)
    return path


def read(source, piece: int = 65_536) -> tuple[str, Document]:
    opened = Document(source, piece)
    return "".join(opened.text()), opened


def refusal(source, piece: int = 65_536) -> str:
    """The message, which is one line and names the file."""
    with pytest.raises(AllMemError) as error:
        read(source, piece)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert ("standard input" if source == "-" else str(source)) in message
    return message


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 7, 65_536])
@pytest.mark.parametrize(
    "data, text",
    [
        (b"plain\ntext\n", "plain\ntext\n"),
        (codecs.BOM_UTF8 + "né".encode(), "né"),
        (b"a" + codecs.BOM_UTF8, "a\ufeff"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b"one\r\ntwo\rthree\n\rfour\r\r\n", "one\ntwo\nthree\n\nfour\n\n"),
        (b"end\r", "end\n"),
        ("第一章👩\r\n".encode(), "第一章👩\n"),
        (b"\n \t", "\n \t"),
    ],
)
def test_text_of_a_file(tmp_path, data, text, piece):
    path = write(tmp_path, data)
    assert read(path, piece)[0] == text
    assert read(str(path), piece)[1].replaced == 0


@pytest.mark.parametrize("piece", [1, 5, 65_536])
def test_bytes_that_are_not_utf8_are_counted(tmp_path, piece):
    """Among characters that are UTF-8."""
    data = "Où est le café, l’été ?".encode() + b"a caf\xe9\n" + b"\xc3"
    text, opened = read(write(tmp_path, data), piece)
    assert text == "Où est le café, l’été ?a caf\ufffd\n\ufffd"
    assert opened.replaced == 2 and not opened.notes
    (warning,) = opened.warnings
    assert "book.txt" in warning and "2 characters could not be decoded" in warning


def test_text_comes_in_pieces(tmp_path):
    path = write(tmp_path, b"word " * 100_000)
    assert max(map(len, Document(path).text())) == 65_536
    assert max(map(len, Document(path, piece=100).text())) == 100


def test_bytes_read(tmp_path):
    data = ("né " * 50_000).encode()
    opened = Document(write(tmp_path, data), piece=1000)
    assert opened.size == len(data)
    counts = [opened.bytes_read for _ in opened.text()]
    assert counts == sorted(counts)
    assert len(counts) == 201
    assert counts[-1] == len(data)


def test_tokens_of_a_file(tmp_path):
    path = write(tmp_path, PROSE[:20_000].replace("\n", "\r\n").encode())
    pieces = list(Document(path, piece=1000).pieces(build(gpt2)))
    assert len(pieces) > 3
    assert sum(pieces, []) == build(gpt2).encode(PROSE[:20_000])


def set_stdin(monkeypatch, data: bytes) -> io.BytesIO:
    buffer = io.BytesIO(data)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    return buffer


def test_standard_input(monkeypatch):
    buffer = set_stdin(
        monkeypatch, codecs.BOM_UTF8 + b"one\r\n\xe9 two and a few words"
    )
    text, opened = read("-", piece=5)
    assert text == "one\n\ufffd two and a few words"
    assert (opened.name, opened.size) == ("standard input", None)
    assert (opened.replaced, opened.bytes_read) == (1, 29)
    assert not opened.notes
    assert not buffer.closed


def test_standard_input_is_refused_as_a_file_is(monkeypatch):
    set_stdin(monkeypatch, b"")
    assert "empty" in refusal("-")
    set_stdin(monkeypatch, b"a\0b")
    assert "binary" in refusal("-")
    monkeypatch.setattr("sys.stdin", None)
    assert "closed" in refusal("-")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_pipe_has_no_size():
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(b"some words")
    text, opened = read(f"/dev/fd/{reader}")
    os.close(reader)
    assert (text, opened.size, opened.bytes_read) == ("some words", None, 10)


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.txt")


def test_name_of_two_lines(tmp_path):
    with pytest.raises(AllMemError) as error:
        Document(tmp_path / "two\nlines")
    assert len(str(error.value).splitlines()) == 1


def test_file_without_permission(tmp_path, monkeypatch):
    def forbidden(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source, "open", forbidden, raising=False)
    assert "Permission denied" in refusal(write(tmp_path, b"text"))


@pytest.mark.parametrize("data", [b"", codecs.BOM_UTF8])
def test_empty_file(tmp_path, data):
    assert "is empty" in refusal(write(tmp_path, data))


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
@pytest.mark.parametrize("end", ["LE", "BE"])
@pytest.mark.parametrize("piece", [1, 3, 65_536])
def test_byte_order_marks(tmp_path, encoding, end, piece):
    data = "\ufeffsome words\r\nof 第一章".encode(encoding + end)
    text, opened = read(write(tmp_path, data), piece)
    assert text == "some words\nof 第一章" and not opened.notes + opened.warnings


def test_nuls_are_left_out(tmp_path):
    """A few: in the head, in a block of their own far into the file, in UTF-16."""
    early = b"some words " * 50 + b"\0" * 7 + b" and more\n" * 50
    late = b"word " * SAMPLE + b"\0" * SAMPLE + b"word " * SAMPLE
    wide = "some words\0 and\n".encode("utf-16")
    for data, nuls in ((early, 7), (late, SAMPLE), (wide, 1)):
        for piece in (1000, 65_536):
            text, opened = read(write(tmp_path, data), piece)
            assert "\0" not in text and "word" in text[-20:] + text
            (warning,) = opened.warnings
            assert f"{nuls} NUL character" in warning and "left out" in warning


def test_binary_file(tmp_path):
    png = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
    elf = b"\x7fELF\2\1\1" + bytes(9) + bytes(range(256)) * 20
    for data in (b"a\0b", b"\x7fELF\0\0\1", bytes(100), bytes(range(256)) * 10, elf):
        assert "binary" in refusal(write(tmp_path, data))
    refusal(write(tmp_path, png))


def test_a_stray_byte_in_a_long_log(tmp_path):
    log = b"2026-01-01 10:00:00 host app: served\n" * 4000
    text, opened = read(write(tmp_path, log + b"\x81\xfe\x05\x06\n" + log))
    assert text.startswith("2026") and text.endswith("served\n")
    assert opened.replaced and opened.warnings


def test_reading_error_midway(monkeypatch):
    class Failing(io.BytesIO):
        def read1(self, size=-1):
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read1(size)

    buffer = Failing(b"word " * SAMPLE)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    assert f"after {SAMPLE} bytes (Input/output error)" in refusal("-")


def test_refused_file_is_closed(tmp_path, monkeypatch):
    files = []

    def remember(*args):
        files.append(open(*args))
        return files[-1]

    monkeypatch.setattr(source, "open", remember, raising=False)
    refusal(write(tmp_path, b""))
    refusal(write(tmp_path, bytes(range(256))))
    read(write(tmp_path, b"text"))
    assert [file.closed for file in files] == [True] * 3


@pytest.mark.parametrize("piece", [0, -1])
def test_impossible_piece(tmp_path, piece):
    with pytest.raises(SettingError, match="at least 1"):
        Document(write(tmp_path, b"text"), piece)


@pytest.mark.real_model
@pytest.mark.parametrize("piece", [257, 8192])
def test_a_real_book(request, book, piece):
    _, tokenizer = request.getfixturevalue("smollm2")
    pieces = [*Document(book, piece=piece).pieces(tokenizer)]
    text = book.read_bytes().decode().replace("\r\n", "\n")
    assert sum(pieces, []) == tokenizer.encode(text, add_special_tokens=False)
    assert len(pieces) > 10


# Several documents, and their marks.


def test_marks(tmp_path):
    """Of files in a folder, each with its heading."""
    folder = tmp_path / "book"
    (folder / "part 2").mkdir(parents=True)
    (folder / "part 10.md").write_text(
        "Before.\n\n# One\nText.\n```\n# code\n```\n## Two #\nEnd"
    )
    (folder / "part 2" / "a.txt").write_bytes(b"one\r\ntwo " * 9)
    (folder / "part 9.txt").write_text("# no heading of a text\n")
    (folder / ".hidden").write_text("hidden")
    (folder / "empty").write_bytes(b"")
    opened = Document(folder, piece=40)
    passages = list(opened.parts())
    whole = "".join(x.text for x in passages)
    assert whole == (
        "# part 2/a.txt\n\n"
        + "one\ntwo " * 9
        + "\n\n# part 9.txt\n\n# no heading of a text\n"
        "\n\n# part 10.md\n\nBefore.\n\n# One\nText.\n```\n# code\n```\n## Two #\nEnd"
    ).replace("/", os.sep)
    for text, mark in passages:
        assert mark.page is None and 0 < len(text) <= 40
        if not text.lstrip("\n").startswith(f"# {mark.source}"):
            source = Document(folder / mark.source)
            assert "".join(source.text())[mark.offset :].startswith(text)
    sections = {x.mark.section: x.text for x in passages if "10" in x.mark.source}
    assert list(sections) == [None, "One", "Two"] and sections["Two"].endswith("End")
    (note,) = opened.notes
    assert note.startswith("left out: ") and "empty' is empty" in note
    assert (
        opened.size
        == opened.bytes_read
        == sum(
            (folder / x.mark.source).stat().st_size
            for x in {x.mark.source: x for x in passages}.values()
        )
    )


def test_several_files(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("first")
    other.write_bytes("Où est l'été de la forêt ?".encode("cp1252"))
    opened = Document([one, str(other)])
    assert "".join(opened.text()) == (
        "# one.txt\n\nfirst\n\n# other.txt\n\nOù est l'été de la forêt ?"
    )
    assert opened.name == f"{str(one)!r} and 1 more"
    assert opened.notes == [f"{str(other)!r} is read as Windows-1252"]
    with pytest.raises(AllMemError, match="nowhere"):
        Document([one, tmp_path / "nowhere"])


def test_no_document():
    with pytest.raises(SettingError, match="no document"):
        Document([])


def test_a_folder_without_documents(tmp_path):
    with pytest.raises(AllMemError, match="no documents"):
        Document(tmp_path)
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    with pytest.raises(AllMemError, match="no documents"):
        Document(tmp_path)


def test_a_folder_of_many_files(tmp_path):
    """One is open at a time, and those that are left out are named, a few of them."""
    resource = pytest.importorskip("resource")
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"file {i}")
        (tmp_path / f"{i}.bin").write_bytes(bytes(100))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        opened = Document(tmp_path)
        text = "".join(opened.text())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [line for line in text.splitlines() if line.startswith("file")] == [
        f"file {i}" for i in range(300)
    ]
    assert len(opened.notes) == 4 and opened.notes[-1].endswith(": 297 more files")
    for i in range(3):
        assert f"{i}.bin' is binary" in opened.notes[i]


def test_the_library_that_a_folder_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\n")
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingLibrary, match=r"allmem-mlx\[documents\]"):
        Document(tmp_path)


# What gzip has packed.


@pytest.mark.parametrize("piece", [7, 65_536])
def test_gzip(tmp_path, piece):
    path = write(tmp_path, gzip.compress("né\r\nwords ".encode() * 9000))
    text, opened = read(path, piece)
    assert text == "né\nwords " * 9000
    assert opened.size == opened.bytes_read == path.stat().st_size


def test_gzip_through_a_pipe(monkeypatch):
    set_stdin(monkeypatch, gzip.compress(b"some words " * 9000))
    assert read("-")[0] == "some words " * 9000


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("piped", [False, True])
def test_formats(tmp_path, monkeypatch, packed, piped):
    """By content, packed or not, from a file or through a pipe."""
    page = "<!DOCTYPE html><h1>The treaty</h1><p>It &amp; a pact were signed.</p>"
    for data, words, section in (
        (page.encode(), "It & a pact were signed.", "The treaty"),
        (rb"{\rtf1\ansi The treaty was signed.\par}", "The treaty was signed.", None),
    ):
        data = gzip.compress(data) if packed else data
        if piped:
            set_stdin(monkeypatch, data)
        opened = Document("-" if piped else write(tmp_path, data))
        passages = list(opened.parts())
        assert words in "".join(x.text for x in passages)
        assert passages[-1].mark.section == section


def test_the_last_byte_counts(tmp_path):
    with pytest.raises(AllMemError, match="encoding"):
        Document(write(tmp_path, b"caf\xe9"))


def test_a_document_that_becomes_shorter(tmp_path):
    """While it is read: what is lost is said."""
    path = write(tmp_path, b"some words " * 30_000)
    opened = Document(path, piece=1000)
    texts = opened.text()
    next(texts)
    os.truncate(path, 100_000)
    assert sum(map(len, texts)) < 200_000
    assert opened.warnings == [f"{str(path)!r}: it became shorter while it was read"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_that_speaks_of_a_format(tmp_path, monkeypatch, packed):
    text = "A file that begins with %PDF-1.7 is a PDF. " + "words of the text " * 9000
    data = gzip.compress(text.encode()) if packed else text.encode()
    path = write(tmp_path, data)
    assert read(path)[0] == text and read(path)[1].bytes_read == len(data)
    set_stdin(monkeypatch, data)
    assert read("-")[0] == text


@pytest.mark.slow
def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """Text of which gzip makes a thousandth, and a page; a log of the same size is."""
    bomb = gzip.compress(b"a" * 80_000_000)
    page = gzip.compress(b"<html>" + b"a" * 80_000_000)
    for data in (bomb, page):
        set_stdin(monkeypatch, data)
        for path in ("-", write(tmp_path, data)):
            with pytest.raises(AllMemError, match="unpacks to more than 200 times"):
                for _ in Document(path).text():
                    pass
    log = b"".join(b"%d: request served in %d ms\n" % (i, i % 97) for i in range(10**5))
    assert len(read(write(tmp_path, gzip.compress(log * 30)))[0]) == 30 * len(log)


# Texts without spaces.


def sizes(tokenizer: Path, *files: Path) -> list[tuple[int, int, int, int]]:
    """Of each file: its tokens, the bytes read when the first came, the cuts that
    changed one, and the largest size that the process has had by then."""
    tokenizer, found = AutoTokenizer.from_pretrained(tokenizer), []
    for file in files:
        opened, tokens, first = Document(file, piece=8192), 0, 0
        for ids in opened.pieces(tokenizer):
            tokens += len(ids)
            first = first or opened.bytes_read
        found.append((tokens, first, opened.changed_cuts, peak()))
    return found


@pytest.mark.parametrize("kind", ["base64", "a Chinese line", "dots", "minified code"])
@pytest.mark.slow
def test_a_million_characters_without_a_space(tmp_path, kind):
    """The peak of memory is that of a tenth of them, and the first tokens come when a
    few blocks are read. No cut changed a token."""
    texts = {
        "base64": "".join(f"{i * 7919 % 999983:x}/+Qz" for i in range(120_000)),
        "a Chinese line": "条約は港で調印された，船は北へ向かった。" * 50_000,
        "dots": "." * 1_000_000,
        "minified code": "".join(f"a.push({i});" for i in range(90_000)),
    }
    build(smollm2).save_pretrained(tmp_path / "tokenizer")
    files = [tmp_path / "short", tmp_path / "long"]
    long = 1_000_000 if kind == "base64" else 300_000
    for file, length in zip(files, (60_000, long), strict=True):
        file.write_text(texts[kind][:length])
    short, long = alone(sizes, tmp_path / "tokenizer", *files)
    for tokens, first, changes, _ in (short, long):
        assert tokens > 1000 and first <= 80_000 and changes == 0
    assert long[3] < short[3] + 8 * 2**20, (short, long)
