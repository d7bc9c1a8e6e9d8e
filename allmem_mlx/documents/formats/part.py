"""What every format has in common: its parts, and the library that reads it."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from ...errors import AllMemError, MissingLibrary

HELD = 32 * 2**20  # the most bytes of a file, or of one in an archive, held whole


class Part(NamedTuple):
    """A piece of a document's text, and where it is from."""

    text: str
    page: int | None = None  # from 1; the physical page of a PDF
    section: str | None = None  # the nearest heading before it
    done: float = 0.0  # share of the source read after this part, 0 to 1


# reader(file, name, warn): the file, what messages call it, and what is called with
# every warning.
Reader = Callable[[BinaryIO, str, Callable[[str], None]], Iterator[Part]]


def library(module: str, name: str, kind: str, package: str = "") -> Any:
    """A module of a library that is needed only for documents of a kind.

    Args:
        module (str): what is imported.
        name (str): what messages call the document.
        kind (str): what the document is, with its article.
        package (str): what is installed, if it is called otherwise than the module.

    Raises:
        MissingLibrary: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = package or module.partition(".")[0]
        raise MissingLibrary(
            f"{name} is {kind}; reading it needs {package}: "
            "pip install 'allmem-mlx[documents]'"
        ) from None


def read_whole(file: BinaryIO, name: str, kind: str) -> bytes:
    """A file of a format that cannot be read piece by piece.

    Raises:
        AllMemError: if it has more than 32 MiB.
    """
    file.seek(0)
    data = file.read(HELD + 1)
    if len(data) > HELD:
        raise AllMemError(
            f"{name} is {kind} of more than {HELD >> 20} MiB, which must be held whole "
            "to be read; split it, or export it as text"
        )
    return data


def one_line(text: str) -> str:
    """A heading without line breaks and runs of spaces."""
    return " ".join(text.split())
