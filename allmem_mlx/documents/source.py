"""One file, or standard input, as text. Its format is recognised by its content."""

import gzip
import hashlib
import io
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any, BinaryIO, cast

from ..errors import AllMemError
from .encodings import SAMPLE, Decoder, UnknownEncoding, find_encoding
from .formats import Part, find_parser, looks_like_format, markdown

MARKDOWN = (".md", ".markdown", ".md.gz")  # which the content does not show
GZIP = b"\x1f\x8b"
RATIO = 200  # maximum bytes that gzip unpacks from one ...
UNSUSPICIOUS = 64 * 2**20  # ... of a file that is larger than this


class Source:
    """A file, or standard input, that is read once from start to end.

    It is PDF, EPUB, Word, HTML, RTF or text, and may be compressed by gzip. Opening
    reads the beginning, so that most files that cannot be read are refused before a
    model is loaded.

    Args:
        path (str or path): a file, or ``"-"`` for standard input.
        piece (int): bytes of a text read at a time.

    Attributes:
        name (str): its name in messages.
        size (int, optional): bytes of the file; None for standard input and pipes.
        bytes_read (int): bytes of it read so far; of pages and chapters, in proportion.
        notes (list): remarks on its beginning, a line each.

    Raises:
        AllMemError: if it is missing, unreadable, empty, binary, or of a kind that
            cannot be read. Later faults are raised when reading gets there.
    """

    def __init__(self, path: str | os.PathLike[str], piece: int = 65_536):
        self.name = "standard input" if path == "-" else repr(os.fspath(path))
        self.size: int | None = None
        self.bytes_read = 0
        self.notes: list[str] = []
        self._path, self._piece = path, piece
        self._parts: Iterator[Part] | None = None
        self._closing = ExitStack()
        self._open()

    @property
    def path(self) -> str:
        """Its path, as text."""
        return os.fsencode(self._path).decode(errors="replace")

    def parts(self) -> Iterator[Part]:
        """Yields pieces of the text, each with its page and section."""
        if self._parts is None:
            self._open()
        try:
            yield from cast(Iterator[Part], self._parts)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file; :meth:`parts` opens it again."""
        self._parts = None
        self._closing.close()

    def pause(self) -> None:
        """Closes the file if it can be opened again."""
        if self.size is not None:
            self.close()

    def digest(self) -> str:
        """The SHA-256 of the file's bytes; not for standard input and pipes."""
        try:
            file: Any = self._file()
            with file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise AllMemError(
                f"{self.name} cannot be read ({error.strerror})"
            ) from None

    def _open(self) -> None:
        self._warnings: list[str] = []
        self._decoder: Decoder | None = None
        self._packed: _Again | None = None
        try:
            parts = (part for part in self._begin() if part.text)
            if (first := next(parts, None)) is None:
                raise AllMemError(
                    f"{self.name} is empty; give a text of at least one word"
                )
        except BaseException:
            self.close()
            raise
        self._parts = chain([first], parts)

    @property
    def replaced(self) -> int:
        """U+FFFD characters of a text so far, including those of the text itself."""
        return self._decoder.replaced if self._decoder else 0

    @property
    def warnings(self) -> list[str]:
        """Remarks on the part that was read, a line each."""
        lines = self._warnings + (self._decoder.warnings if self._decoder else [])
        return [f"{self.name}: {line}" for line in lines]

    def _begin(self) -> Iterator[Part]:
        stream = file = self._file()
        head = self._read(file, SAMPLE)
        if head.startswith(GZIP):
            self._packed = _Again(head, file)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._packed))
            head = self._read(stream, SAMPLE)
        if looks_like_format(head):
            if self._packed or self.size is None:
                stream = self._spool(head, stream)
            parse = find_parser(head, stream, self.name)
            if parse is not None:
                warn = self._warnings.append
                return self._formatted(parse(stream, self.name, warn))
            stream.seek(len(head))
        texts = self._text(head, stream)
        if str(self._path).lower().endswith(MARKDOWN):
            return markdown.parts(texts)
        return map(Part, texts)

    def _formatted(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            if self.size is not None:
                self.bytes_read = round(part.done * self.size)
            yield part

    def _text(self, head: bytes, stream: BinaryIO) -> Iterator[str]:
        encoding, self.notes = self._encoding(head, stream)
        self._decoder = decoder = Decoder(encoding)
        done = 0
        for data in chain(self._data(head, stream), [b""]):
            done += len(data)
            self.bytes_read = self._packed.count if self._packed else done
            self._check_ratio(done)
            if text := decoder.decode(data, final=not data):
                yield text
        if self.size is not None and not self._packed and done < self.size:
            self._warnings.append("it became shorter while it was read")

    def _encoding(self, head: bytes, stream: BinaryIO) -> tuple[str, list[str]]:
        """The encoding of the head, or if that is ASCII, of the first part that is
        not."""
        is_ascii = head.isascii() and 0 not in head
        if not is_ascii or self.size is None or self._packed:
            return find_encoding(head, self.name, whole=len(head) < SAMPLE)
        while sample := self._read(stream, SAMPLE):
            if not sample.isascii():
                break
        stream.seek(len(head))
        try:
            return find_encoding(sample, self.name)
        except UnknownEncoding:
            return "utf-8", []  # losses are reported at the end

    def _data(self, head: bytes, stream: BinaryIO) -> Iterator[bytes]:
        for start in range(0, len(head), self._piece):
            yield head[start : start + self._piece]
        while data := self._read(stream, self._piece):
            yield data

    def _check_ratio(self, unpacked: int) -> None:
        packed = self._packed
        if packed and unpacked > max(UNSUSPICIOUS, RATIO * packed.count):
            raise AllMemError(
                f"{self.name} unpacks to more than {RATIO} times its size, as a bomb "
                "does; unpack it with gzip first if you trust it"
            )

    def _spool(self, head: bytes, stream: BinaryIO) -> BinaryIO:
        """The document in a temporary file, for formats that need random access."""
        spool = cast(BinaryIO, self._closing.enter_context(tempfile.TemporaryFile()))
        for data in chain([head], iter(lambda: self._read(stream, SAMPLE), b"")):
            spool.write(data)
            self._check_ratio(spool.tell())
        spool.seek(0)
        return spool

    def _file(self) -> BinaryIO:
        if self._path == "-":
            if sys.stdin is None:
                raise AllMemError(f"{self.name} is closed; pipe a text into it")
            return sys.stdin.buffer
        try:
            file = open(self._path, "rb")
        except FileNotFoundError:
            raise AllMemError(f"{self.name} does not exist; check the name") from None
        except OSError as error:
            raise AllMemError(
                f"{self.name} cannot be opened ({error.strerror}); make it readable "
                "or choose another file"
            ) from error
        self._closing.callback(file.close)
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        return file

    def _read(self, file: Any, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only before the end or an error."""
        data = b""
        try:
            while len(data) < count and (more := file.read1(count - len(data))):
                data += more
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not data:
                raise AllMemError(
                    f"{self.name} is damaged or incomplete: gzip cannot unpack more of "
                    "it; get a whole copy"
                ) from error
        except OSError as error:
            if not data:
                raise AllMemError(
                    f"{self.name} cannot be read after {self.bytes_read} bytes "
                    f"({error.strerror or error}); check the disk or the pipe it is on"
                ) from error
        return data


class _Again(io.RawIOBase):
    """A file from its start, after its head was read; it counts the bytes read."""

    def __init__(self, head: bytes, file: BinaryIO):
        self._head, self._file = head, file
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            size = len(self._head) if size < 0 else size
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._file.read(size)
        self.count += len(data)
        return data
