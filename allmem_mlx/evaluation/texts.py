"""Text files as documents."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import Document
from ..documents.plain_text import as_plain_text
from ..documents.tokens import tokenize
from ..errors import AllMemError, warn


@dataclass(frozen=True)
class Text:
    """A file.

    Args:
        file (Path): the file.
        tokens (list): its token ids, or the first of them, without a BOS.
        text (str): its text.
    """

    file: Path
    tokens: list[int]
    text: str

    def record(self) -> dict[str, Any]:
        """The file, its digest and the number of tokens, as JSON."""
        return {**file_record(self.file), "tokens": len(self.tokens)}


def file_record(file: Path) -> dict[str, Any]:
    """The file and its digest, as JSON."""
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
    """A document, after the warnings about it.

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


def read_text(file: Path, tokenizer: Any, limit: int | None = None) -> Text:
    """A document, with its first tokens or all.

    Raises:
        AllMemError: if it cannot be read.
    """
    text = whole_text(file)
    tokens: list[int] = []
    for ids, _ in tokenize([text], as_plain_text(tokenizer)):
        tokens += ids
        if limit is not None and len(tokens) >= limit:
            break
    return Text(file, tokens[:limit], text)
