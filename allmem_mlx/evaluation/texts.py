"""Text files as documents."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..document import Document, tokenize
from ..errors import AllMemError


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
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return {"file": str(self.file), "sha256": digest, "tokens": len(self.tokens)}


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


def read_text(file: Path, tokenizer: Any, most: int | None = None) -> Text:
    """Reads the first tokens of a text file, or all.

    Raises:
        AllMemError: if it is not UTF-8 text.
    """
    texts: list[str] = []

    def pieces() -> Iterator[str]:
        for text in Document(file).text():
            texts.append(text)
            yield text

    tokens: list[int] = []
    for piece in tokenize(pieces(), tokenizer):
        tokens += piece
        if most is not None and len(tokens) >= most:
            break
    return Text(file, tokens[:most], "".join(texts))
