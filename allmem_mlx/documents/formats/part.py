"""The parts of a document's text, which every parser yields."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from ...errors import AllMemError

HELD = 32 * 2**20  # maximum bytes of a file, or of one in an archive, held whole

# Arguments of lxml's parsers with which they fetch nothing and expand nothing.
SAFE_XML: dict[str, Any] = dict(
    resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
)


class Part(NamedTuple):
    """A piece of a document's text, and where it is from."""

    text: str
    page: int | None = None  # from 1; the physical page of a PDF
    section: str | None = None  # the nearest heading before it
    done: float = 0.0  # fraction of the file parsed after this part, 0 to 1


Warn = Callable[[str], None]  # called with every warning

# parser(file, name, warn): the file, and its name in messages.
Parser = Callable[[BinaryIO, str, Warn], Iterator[Part]]


def load_whole(file: BinaryIO, name: str, kind: str) -> bytes:
    """The bytes of a file whose format cannot be parsed piece by piece.

    Raises:
        AllMemError: if there are more than 32 MiB.
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
