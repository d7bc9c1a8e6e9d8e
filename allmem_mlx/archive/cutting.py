"""A document's text, cut into passages: whole sentences, of one page and section."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from ..documents import Mark, Piece

LONGEST = 600  # bytes of UTF-8 in a passage: about 150 tokens of English
AHEAD = 4 * LONGEST  # characters that must be known to cut, so that pieces don't matter


class Cut(NamedTuple):
    """A passage of a document.

    Args:
        text (str): without white space at its ends.
        mark (Mark): where it is from.
        start, end (int): its characters in all of the document's text.
    """

    text: str
    mark: Mark
    start: int
    end: int


@lru_cache(maxsize=1)
def _ends() -> tuple[Any, Any]:
    """Ends of sentences and of paragraphs, white space included."""
    import regex

    closers = "[\"'”’»)\\]」』）]*+"
    no_end = r"(?<!\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Gen|No|vs|cf|pp?|Fig|\p{Lu}))"
    # Nothing is tried twice, as texts have long runs of dots.
    stops = rf"(?<![.!?…]){no_end}[.!?…]++{closers}\s++(?!\p{{Ll}})"
    return (
        regex.compile(rf"{stops}|[。！？]++{closers}\s*+|\n\s*\n\s*"),
        regex.compile(r"\n\s*\n\s*"),
    )


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, the white space after them included;
    a paragraph ends one."""
    stops = [match.end() for match in _ends()[0].finditer(text)]
    if text and (not stops or stops[-1] < len(text)):
        stops.append(len(text))
    return list(zip([0, *stops], stops, strict=False))


def passages(parts: Iterable[Piece]) -> Iterator[Cut]:
    """Cuts a document into passages of at most :data:`LONGEST` bytes.

    A passage ends with a paragraph, if one ends in its second half, else with a
    sentence, else with a word. None goes over the end of a file, a page or a section.
    How the text came in pieces does not matter.

    Args:
        parts: of :meth:`~allmem_mlx.documents.document.Document.parts`.
    """
    text, at = "", 0  # what is to be cut, and the characters of the document before it
    here: Mark | None = None  # where it begins
    for piece, mark in parts:
        goes_on = here and mark == replace(here, offset=here.offset + len(text))
        if here is None or not goes_on or here.offset < 0 <= mark.offset:
            if here is not None:
                yield from _cut(text, here, at)
            at += len(text)
            text, here = "", mark
        text += piece
        for cut in _cut(text, here, at, AHEAD):
            yield cut
            taken = cut.end - at
            text, at = text[taken:], cut.end
            here = replace(here, offset=here.offset + taken)
    if here is not None:
        yield from _cut(text, here, at)


def _cut(text: str, mark: Mark, at: int, ahead: int = 0) -> Iterator[Cut]:
    """The passages of a text, as long as more than ``ahead`` characters are left."""
    done = 0
    while True:
        rest = text[done:].lstrip()
        done = len(text) - len(rest)
        if len(rest) <= ahead:
            return
        size = _size(rest[:AHEAD])
        body = rest[:size].rstrip()
        start, done = done, done + size
        where = replace(mark, offset=mark.offset + start)
        if where.offset >= 0:  # not the name of the file, before its text
            yield Cut(body, where, at + start, at + start + len(body))


def _size(text: str) -> int:
    """Characters of the first passage of a text."""
    most = len(text.encode()[:LONGEST].decode(errors="ignore"))
    if most == len(text):
        return most
    sentence, paragraph = _ends()
    for pattern, least in ((paragraph, most // 2), (sentence, 0)):
        found = takewhile(lambda match: match.start() <= most, pattern.finditer(text))
        ends = [match.end() for match in found]
        ends = [end for end in ends if least < len(text[:end].rstrip()) <= most]
        if ends:
            return ends[-1]
    return max(text.rfind(" ", 1, most), text.rfind("\n", 1, most)) + 1 or most
