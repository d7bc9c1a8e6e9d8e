"""Documents as a stream of text, with its origin, and as a stream of tokens."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AllMemError, MissingLibrary, SettingError
from .plain_text import as_plain_text
from .source import Source
from .tokens import tokenize

NAMED = 3  # skipped files of a folder that are named

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Mark:
    """The origin of text of a document.

    Args:
        source (str): name of the file.
        page (int): page of a PDF, from 1; else ``None``.
        section (str): the chapter, or the last heading; ``None`` before the first, and
            if there are none.
        offset (int): characters of the file's text before it; negative for a heading
            that names the file.
    """

    source: str
    page: int | None
    section: str | None
    offset: int


class Piece(NamedTuple):
    """A piece of a document's text and its origin."""

    text: str
    mark: Mark


class Document:
    r"""Files, folders or standard input, read once from start to end.

    A file's format is recognised by its content: PDF, EPUB, Word, HTML, RTF or text,
    compressed by gzip or not. Only Markdown is recognised by its name. Text is decoded
    by :mod:`~allmem_mlx.documents.encodings`. A folder stands for all readable files in
    it and in its folders, except hidden ones, in natural order: "chapter 10" after
    "chapter 9". Each of several files begins with its name as a heading, ``# NAME``.

    Args:
        source: a file, a folder, ``"-"`` for standard input, or a list of them.
        piece (int): maximum characters of a piece of text.

    Attributes:
        name (str): the document's name in messages.
        size (int, optional): bytes of its files; None for standard input and pipes.
        notes (list): remarks on opening it, a line each: encodings that were guessed,
            files of a folder that are left out.
        changed_cuts (int): how often tokens may differ from those of the whole text,
            because it had to be cut within words; see
            :func:`~allmem_mlx.documents.tokens.tokenize`.

    Raises:
        AllMemError: if a named file, or every file of a folder, cannot be read; see
            :class:`~allmem_mlx.documents.source.Source`. Later faults are raised when
            reading gets there.
        SettingError: if there is no source, or ``piece`` is not at least 1.
    """

    def __init__(self, source: FilePath | Sequence[FilePath], piece: int = 65_536):
        if piece < 1:
            raise SettingError(f"piece is {piece!r}; it must be at least 1")
        paths = [source] if isinstance(source, str | os.PathLike) else [*source]
        if not paths:
            raise SettingError("there is no document to read: name a file")
        self.piece = piece
        self.notes: list[str] = []
        self.changed_cuts = 0
        self._sources: list[tuple[str, Source]] = []  # by the names of the headings
        for path in paths:
            if path != "-" and os.path.isdir(path):
                self._add_folder(Path(path))
            else:
                self._add(path, os.path.basename(os.fspath(path)))
        titles = Counter(title for title, _ in self._sources)
        self._sources = [
            (title if titles[title] == 1 else source.path, source)
            for title, source in self._sources
        ]
        first = "standard input" if paths[0] == "-" else repr(os.fspath(paths[0]))
        more = len(paths) - 1
        self.name = f"{first} and {more} more" if more else first
        sizes = [source.size for _, source in self._sources]
        self.size = None if None in sizes else sum(filter(None, sizes))

    @property
    def bytes_read(self) -> int:
        """Bytes of its files read so far; of pages and chapters, in proportion."""
        return sum(source.bytes_read for _, source in self._sources)

    @property
    def replaced(self) -> int:
        """U+FFFD characters read so far, including those of the files themselves."""
        return sum(source.replaced for _, source in self._sources)

    @property
    def warnings(self) -> list[str]:
        """Remarks on the part that was read, a line each."""
        lines = [line for _, source in self._sources for line in source.warnings]
        if self.changed_cuts:
            lines.append(
                f"{self.name}: tokens may differ from those of the whole text at "
                f"{self.changed_cuts} places, where it has no words to be cut between"
            )
        return lines

    def parts(self) -> Iterator[Piece]:
        """Yields the text in pieces, none of which is empty, with their origins."""
        for number, (title, source) in enumerate(self._sources):
            if len(self._sources) > 1:
                heading = f"# {title}\n\n" if number == 0 else f"\n\n# {title}\n\n"
                yield Piece(heading, Mark(title, None, None, -len(heading)))
            offset = 0
            for part in source.parts():
                for start in range(0, len(part.text), self.piece):
                    text = part.text[start : start + self.piece]
                    yield Piece(text, Mark(title, part.page, part.section, offset))
                    offset += len(text)

    def digest(self) -> str | None:
        """The SHA-256 of the names and bytes of its files; ``None`` if one is standard
        input or a pipe, which can be read only once."""
        if self.size is None:
            return None
        running = hashlib.sha256()
        for title, source in self._sources:
            running.update(f"{title}\0{source.digest()}\0".encode())
        return running.hexdigest()

    def text(self) -> Iterator[str]:
        """Yields the text in pieces, none of which is empty."""
        return (piece.text for piece in self.parts())

    def pieces(self, tokenizer: Any, allow_special_tokens: bool = False) -> "Pieces":
        """The ids of the document's tokens; see
        :func:`~allmem_mlx.documents.tokens.tokenize`.

        Args:
            tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.
            allow_special_tokens (bool): encode the names of control tokens as control
                tokens, not as plain text; for trusted documents.

        Raises:
            AllMemError: if the tokenizer encodes plain text as a control token.
        """
        return Pieces(self, tokenizer, allow_special_tokens)

    def count_cut(self) -> None:
        """Counts a cut that changed tokens."""
        self.changed_cuts += 1

    def _add(self, path: FilePath, title: str) -> None:
        source = Source(path, self.piece)
        self.notes += source.notes
        if self._sources:
            self._sources[-1][1].pause()  # so that only one of many files is open
        title = (
            source.name if path == "-" else os.fsencode(title).decode(errors="replace")
        )
        self._sources.append((title, source))

    def _add_folder(self, folder: Path) -> None:
        before = len(self._sources)
        left_out: list[str] = []
        for path in _files(folder):
            try:
                self._add(path, str(path.relative_to(folder)))
            except MissingLibrary:
                raise
            except AllMemError as error:
                left_out.append(f"left out: {error}")
        if len(self._sources) == before:
            raise AllMemError(f"the folder {str(folder)!r} has no documents to read")
        self.notes += left_out[:NAMED]
        if (more := len(left_out) - NAMED) > 0:
            self.notes.append(f"left out of {str(folder)!r}: {more} more files")


class Pieces(Iterator[list[int]]):
    """An iterator over the ids of a document's tokens, in lists.

    Args:
        document (Document): the document.
        tokenizer: a Hugging Face tokenizer, or mlx-lm's wrapper of one.
        allow_special_tokens (bool): see :meth:`Document.pieces`.
    """

    def __init__(
        self, document: Document, tokenizer: Any, allow_special_tokens: bool = False
    ):
        self.document, self.allow_special_tokens = document, allow_special_tokens
        if not allow_special_tokens:
            tokenizer = as_plain_text(tokenizer)
        self._pieces = tokenize(
            document.text(), tokenizer, on_change=document.count_cut
        )

    def __next__(self) -> list[int]:
        return next(self._pieces)[0]


def _files(folder: Path) -> list[Path]:
    """The files of a folder and its folders, except hidden ones, in natural order."""
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    names = {path: path.relative_to(folder).parts for path in files if path.is_file()}
    shown = [
        path
        for path, parts in names.items()
        if not any(part.startswith(".") for part in parts)
    ]
    return sorted(shown, key=lambda path: [_natural_key(part) for part in names[path]])


def _natural_key(name: str) -> list[Any]:
    """A sort key in which numbers count as numbers."""
    pieces = re.split(r"(\d+)", name)
    return [int(x) if i % 2 else x.casefold() for i, x in enumerate(pieces)]
