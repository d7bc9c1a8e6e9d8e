"""A text file, or standard input, as a stream of tokens in bounded memory."""

import codecs
import io
import os
import re
import stat
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from typing import Any, BinaryIO

from .errors import AllMemError, SettingError

BLOCK = 65_536

# UTF-32 first: its little-endian mark begins with that of UTF-16.
FOREIGN_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# Where text may be cut, and what a vocabulary token that stretches over such a place
# looks like. No place is inside a run of white space, which added tokens may take as a
# whole. A token may hold a part of a character, which decodes to U+FFFD.
BOUNDARIES = (
    # the space before a word
    (r"(?<=[!-~\w])(?= [^\W_])", r"[!-~\w\ufffd] ([^\W_]|\ufffd|\Z)"),
    # a line that begins with a word
    (r"(?<=\n)(?=[^\W_])", r"\n([^\W_]|\ufffd)"),
    # a line that begins as a Chinese or Japanese paragraph does
    (r"(?<=\n)(?=\u3000{1,4}\S|[“‘「『（])", r"\n[\u3000“‘「『（\ufffd]"),
)

# Characters that must be known after a cut, so that the tokens before it are decided:
# the regular expressions of pre-tokenizers look one or two ahead.
LOOKAHEAD = 64


class Document:
    r"""A text file, or standard input, that is read once from start to end.

    The text is UTF-8. A byte order mark at its start is dropped, ``\r\n`` and ``\r``
    become ``\n``, and bytes that are not UTF-8 become U+FFFD. Opening reads the first
    64 KiB, so that most files that cannot be read are refused before a model is loaded.

    Args:
        source (str or path): a file, or ``"-"`` for standard input.
        piece (int): bytes read at a time, and so the most characters of a piece.

    Attributes:
        name (str): what messages call the document.
        size (int, optional): bytes of the file; None for standard input and pipes.
        bytes_read (int): bytes decoded so far.
        replaced (int): U+FFFD characters read so far. Those that stand in the file are
            counted too.

    Raises:
        AllMemError: if the file is missing, a directory, unreadable, empty, binary
            (it has a NUL character), UTF-16, UTF-32, or mostly not UTF-8. A NUL or a
            reading error further on is raised when the reading gets there.
        SettingError: if ``piece`` is not at least 1.
    """

    def __init__(self, source: str | os.PathLike[str], piece: int = 65_536):
        if piece < 1:
            raise SettingError(f"piece is {piece!r}; it must be at least 1")
        self.name = "standard input" if source == "-" else repr(os.fspath(source))
        self.piece = piece
        self.size: int | None = None
        self.bytes_read = 0
        self.replaced = 0
        self._is_stdin = source == "-"
        self._file = self._open(source)
        try:
            self._head = self._read(BLOCK)
            self._check_head()
        except BaseException:
            self._close()
            raise

    def text(self) -> Iterator[str]:
        """Yields the text in pieces that are not empty."""
        decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True
        )
        try:
            for block in chain(self._blocks(), [b""]):
                if b"\0" in block:
                    raise self._binary()
                text = decoder.decode(block, final=not block)
                self.bytes_read += len(block)
                self.replaced += text.count("\ufffd")
                if text:
                    yield text
        finally:
            self._close()

    def pieces(self, tokenizer: Any) -> Iterator[list[int]]:
        """Yields the ids of the document's tokens; see :func:`tokenize`."""
        return tokenize(self.text(), tokenizer)

    def _open(self, source: str | os.PathLike[str]) -> BinaryIO:
        if self._is_stdin:
            if sys.stdin is None:
                raise AllMemError(f"{self.name} is closed; pipe a text into it")
            return sys.stdin.buffer
        try:
            file = open(source, "rb")
        except FileNotFoundError:
            raise AllMemError(
                f"{self.name} does not exist; check the name, or use - to read "
                "standard input"
            ) from None
        except IsADirectoryError:
            raise AllMemError(f"{self.name} is a directory; name a text file") from None
        except OSError as error:
            raise AllMemError(
                f"{self.name} cannot be opened ({error.strerror}); make it readable "
                "or choose another file"
            ) from error
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        return file

    def _close(self) -> None:
        if not self._is_stdin:
            self._file.close()

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise AllMemError(
                f"{self.name} cannot be read after {self.bytes_read} bytes "
                f"({error.strerror or error}); check the disk or the pipe it is on"
            ) from error

    def _blocks(self) -> Iterator[bytes]:
        head, self._head = self._head, b""
        for start in range(0, len(head), self.piece):
            yield head[start : start + self.piece]
        while block := self._read(self.piece):
            yield block

    def _check_head(self) -> None:
        for mark, encoding in FOREIGN_MARKS.items():
            if self._head.startswith(mark):
                raise AllMemError(
                    f"{self.name} is {encoding} text; convert it to UTF-8, for example "
                    f"with: iconv -f {encoding} -t UTF-8 OLD > NEW"
                )
        if b"\0" in self._head:
            raise self._binary()
        text = self._head.decode("utf-8-sig", "replace")
        if not text:
            raise AllMemError(f"{self.name} is empty; give a text of at least one word")
        if text.count("\ufffd") > 0.1 * len(text):
            raise AllMemError(
                f"{self.name} is not UTF-8 text; if it is text in another encoding, "
                "convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
            )

    def _binary(self) -> AllMemError:
        return AllMemError(
            f"{self.name} has NUL characters, so that it is binary or not UTF-8; save "
            "or convert it as UTF-8 text"
        )


def tokenize(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """The tokens of ``"".join(texts)``, in memory that does not grow with the text.

    They are exactly those of ``tokenizer.encode(text, add_special_tokens=False)``. The
    text is cut where no token of the vocabulary can stretch over the cut, and only if
    encoding anew from a few words before the cut gives the same tokens. Text without
    such a place is kept until one comes. A tokenizer that is not a fast one, or whose
    vocabulary allows no cut, gets the whole text at once.

    Args:
        texts: pieces of text.
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.

    Raises:
        AllMemError: if text far behind a cut changed the tokens before it.
    """
    boundary = _boundary(tokenizer)
    if boundary is None:
        yield _ids(tokenizer, "".join(texts))
        return
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    # A normalizer may compose up to four characters into one of an added token.
    margin = LOOKAHEAD + 4 * max((len(token.content) for token in added), default=0)
    # The tokens of buffer[:done] are out. Those of buffer[seam:done] must come again.
    buffer, seam, done, wanted = "", 0, 0, 0
    seam_ids: list[int] = []
    for text in chain(filter(None, texts), [""]):
        buffer += text
        if text and len(buffer) < wanted:
            continue
        ids, spans = _encode(tokenizer, buffer)
        start = _first_token(spans, done)
        if start is None or ids[_first_token(spans, seam) : start] != seam_ids:
            raise AllMemError(
                "this model's tokenizer changes tokens by what comes much later in the "
                "text, so that a document cannot be read piece by piece"
            )
        if not text:
            yield ids[start:]
            return
        cuts = [
            (match.start(), index)
            for match in boundary.finditer(buffer)
            if (index := _first_token(spans, match.start())) is not None
        ]
        fresh = [cut for cut in cuts if done < cut[0] <= len(buffer) - margin]
        if fresh:
            cut, end = fresh[-1]
            context = max((at for at, _ in cuts if at <= cut - margin), default=0)
            # The first word of a text may be encoded differently from the others.
            second, index = next(pair for pair in cuts if pair[0] > context)
            again, spans = _encode(tokenizer, buffer[context:])
            if again[_first_token(spans, second - context) :] == ids[index:]:
                yield ids[start:end]
                buffer, seam, done = buffer[context:], second - context, cut - context
                seam_ids, wanted = ids[index:end], 0
                continue
        wanted = 2 * len(buffer)


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of ``text``, and for each the characters that it begins and ends at.

    Tokens before it end no later, and tokens after it begin no earlier.
    """
    ids = _ids(tokenizer, text)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    if encoding.ids != ids:
        # The tokenizer changes the text before it encodes it: nowhere to cut.
        return ids, [(0, len(text))] * len(ids)
    # Offsets run backwards where a pre-tokenizer adds a space, and where two added
    # tokens take the same one.
    starts, ends = zip(*encoding.offsets, strict=True) if ids else ((), ())
    starts = tuple(accumulate(reversed(starts), min))
    return ids, [*zip(reversed(starts), accumulate(ends, max), strict=True)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    # Silences the warning that the text is longer than the model can read.
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _first_token(spans: list[tuple[int, int]], at: int) -> int | None:
    """The first token at or after character ``at``; None if one stretches over it."""
    index = bisect_left(spans, (at,))
    return None if index and spans[index - 1][1] > at else index


def _boundary(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the places where this tokenizer's text may be cut, if there are any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    words = backend.pre_tokenizer
    if words is not None and b'"FixedLength"' in words.__getstate__():
        return None  # counts characters from the start of the text
    decode = backend.decoder.decode
    vocabulary = [decode([token]) for token in backend.get_vocab(False)]
    usable = [
        place
        for place, stretch in BOUNDARIES
        if not any(map(re.compile(stretch).search, vocabulary))
    ]
    return re.compile("|".join(usable)) if usable else None
