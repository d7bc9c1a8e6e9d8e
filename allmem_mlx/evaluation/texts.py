"""Text files as documents."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import Document
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize
from ..errors import AllMemError, warn


@dataclass(frozen=True)
class Text:
    """The beginning of a file.

    Args:
        file (Path): where it is.
        tokens (list): token ids, without a BOS.
        text (str): what they were made of, maybe with some that follows.
    """

    file: Path
    tokens: list[int]
    text: str

    def record(self) -> dict[str, Any]:
        """What it was, for the record."""
        return {**file_record(self.file), "tokens": len(self.tokens)}


def file_record(file: Path) -> dict[str, Any]:
    """Which file it was, for the record."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": str(file), "sha256": digest}


def text_files(paths: Sequence[str]) -> list[Path]:
    """The files, and the ``*.txt`` of folders.

    Raises:
        AllMemError: if there is no such file, or none in a folder.
    """
    files = []
    for path in map(Path, paths):
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not found:
            raise AllMemError(f"{str(path)!r} has no text files (*.txt)")
        if not found[0].exists():
            raise AllMemError(f"{str(path)!r} does not exist; check the name")
        files += found
    return files


def opened(file: Path) -> Document:
    """A document, of which what is to be said is said.

    Raises:
        AllMemError: if it cannot be read.
    """
    document = Document(file)
    for line in document.notes:
        warn(line)
    return document


def whole_text(file: Path) -> str:
    """The text of a document.

    Raises:
        AllMemError: if it cannot be read.
    """
    return "".join(opened(file).text())


def read_text(file: Path, tokenizer: Any, most: int | None = None) -> Text:
    """Reads the first tokens of a document, or all.

    Raises:
        AllMemError: if it cannot be read.
    """
    texts: list[str] = []
    document = opened(file)

    def pieces() -> Iterator[str]:
        for text in document.text():
            texts.append(text)
            yield text

    tokens: list[int] = []
    for piece in tokenize(pieces(), as_plain_text(tokenizer)):
        tokens += piece
        if most is not None and len(tokens) >= most:
            break
    return Text(file, tokens[:most], "".join(texts))
