"""RTF by striprtf: table cells end with ``|``, and there are no sections."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from ...errors import AllMemError
from ..library import import_library
from .part import Part, Warn, load_whole

FONTS = 2**20  # maximum characters of a font table


def parse_rtf(file: BinaryIO, name: str, warn: Warn) -> Iterator[Part]:
    """Yields the text of a document of up to 32 MiB, line by line.

    Raises:
        AllMemError: if it is larger, damaged, or has no text.
    """
    striprtf = import_library("striprtf.striprtf", name, "an RTF document")
    source = load_whole(file, name, "an RTF document").decode("cp1252", "replace")
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
    parsed = 0
    for line in text.split("\n"):
        parsed += len(line) + 1
        yield Part(f"{line}\n", done=min(1.0, parsed / len(text)))
