"""RTF, by striprtf: cells of tables end with ``|``, and there are no sections."""

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ...errors import AllMemError
from .part import Part, library, read_whole

FONTS = 2**20  # the most characters of a table of fonts


def read_rtf(file: BinaryIO, name: str, warn: Callable[[str], None]) -> Iterator[Part]:
    """Yields the text of a document of up to 32 MiB, line by line.

    Raises:
        AllMemError: if it is larger, or damaged.
    """
    striprtf = library("striprtf.striprtf", name, "an RTF document")
    source = read_whole(file, name, "an RTF document").decode("cp1252", "replace")
    # Line breaks mean nothing in RTF, but end the quadratic searches of striprtf, and
    # without this group it does not add the addresses of links to the text.
    source = re.sub(r"(?<!\\)(\\f\d)", r"\n\1", source).replace(
        "\\fldinst{", "\\fldinst {"
    )
    if len(striprtf.font_table_group(source)) > FONTS:
        raise AllMemError(
            f"{name} is a damaged RTF document (its table of fonts does not end); open "
            "it in a word processor and save it anew"
        )
    text = striprtf.rtf_to_text(source, errors="replace")
    del source
    # Characters beyond U+FFFF come in halves.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\0", "").replace("\r\n", "\n").strip("\n")
    if not text.strip():
        raise AllMemError(f"{name} is an RTF document without text; nothing is in it")
    read = 0
    for line in text.split("\n"):
        read += len(line) + 1
        yield Part(f"{line}\n", done=min(1.0, read / len(text)))
