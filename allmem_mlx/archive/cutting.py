"""Cutting of text into passages: whole sentences of one page and section."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from ..documents import Mark, Piece

LONGEST = 600  # bytes of UTF-8 in a passage: about 150 tokens of English
# Characters that must be known before a cut, so that it does not depend on the pieces.
AHEAD = 4 * LONGEST


class Cut(NamedTuple):
    """A passage as it is cut out of a document.

    Args:
        text (str): the text, without white space at its ends.
        mark (Mark): its origin.
        start, end (int): its characters in the document's text.
    """

    text: str
    mark: Mark
    start: int
    end: int


@lru_cache(maxsize=1)
def _ends() -> tuple[Any, Any]:
    """Patterns of the ends of sentences and of paragraphs, white space included."""
    import regex

    closers = "[\"'”’»)\\]」』）]*+"
    no_end = r"(?<!\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Gen|No|vs|cf|pp?|Fig|\p{Lu}))"
    # Without backtracking, as texts have long runs of dots.
    stops = rf"(?<![.!?…]){no_end}[.!?…]++{closers}\s++(?!\p{{Ll}})"
    return (
        regex.compile(rf"{stops}|[。！？]++{closers}\s*+|\n\s*\n\s*"),
        regex.compile(r"\n\s*\n\s*"),
    )


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans of a text's sentences, including the white space after them. The end
    of a paragraph ends a sentence."""
    stops = [match.end() for match in _ends()[0].finditer(text)]
    if text and (not stops or stops[-1] < len(text)):
        stops.append(len(text))
    return list(zip([0, *stops], stops, strict=False))


def passages(parts: Iterable[Piece]) -> Iterator[Cut]:
    """Cuts a document into passages of at most :data:`LONGEST` bytes.

    A passage ends with a paragraph, if one ends in its second half, else with a
    sentence, else with a word, and at the latest where the file, the page or the
    section ends. It does not depend on the pieces in which the text arrives.

    Args:
        parts: of :meth:`~allmem_mlx.documents.document.Document.parts`.
    """
    text, at = "", 0  # the text to cut, and the characters of the document before it
    here: Mark | None = None  # its origin
    for piece, mark in parts:
        follows = here and mark == replace(here, offset=here.offset + len(text))
        if here is None or not follows or here.offset < 0 <= mark.offset:
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
    """Yields the passages of a text while more than ``ahead`` characters are left."""
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
    """The number of characters of a text's first passage."""
    limit = len(text.encode()[:LONGEST].decode(errors="ignore"))
    if limit == len(text):
        return limit
    sentence, paragraph = _ends()
    for pattern, minimum in ((paragraph, limit // 2), (sentence, 0)):
        found = takewhile(lambda match: match.start() <= limit, pattern.finditer(text))
        ends: list[int] = [match.end() for match in found]
        ends = [end for end in ends if minimum < len(text[:end].rstrip()) <= limit]
        if ends:
            return ends[-1]
    return max(text.rfind(" ", 1, limit), text.rfind("\n", 1, limit)) + 1 or limit
