"""Documents as text: decoded, of several files, with marks of where it is from."""

import codecs
import io
import os
import types
from pathlib import Path

import pytest
from test_tokens import PROSE, build, gpt2

from allmem_mlx import source
from allmem_mlx.document import Document
from allmem_mlx.encodings import SAMPLE
from allmem_mlx.errors import AllMemError, SettingError


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
def test_a_real_book(smollm2, book, piece):
    _, tokenizer = smollm2
    pieces = [*Document(book, piece=piece).pieces(tokenizer)]
    text = book.read_bytes().decode().replace("\r\n", "\n")
    assert sum(pieces, []) == tokenizer.encode(text, add_special_tokens=False)
    assert len(pieces) > 10
