"""Markdown, whose text stays as written and whose headings are the sections."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from .part import Part

HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$")
FENCE = re.compile(r" {0,3}(```|~~~)")
LONGEST = 65_536  # characters of a line that are held


def parts(texts: Iterable[str]) -> Iterator[Part]:
    """The same text, in parts that do not go beyond a heading.

    A heading is a line that begins with up to six ``#`` and is not inside a fenced
    block of code.

    Args:
        texts: pieces of Markdown.
    """
    section, fence, rest = None, "", ""
    for text in chain(texts, [""]):
        *lines, rest = (rest + text).split("\n")
        lines = [line + "\n" for line in lines]
        if not text or len(rest) > LONGEST:
            lines, rest = [*lines, rest], ""
        same = ""
        for line in lines:
            if marked := FENCE.match(line):
                fence = "" if fence == marked[1] else fence or marked[1]
            elif not fence and (heading := HEADING.match(line)):
                if same:
                    yield Part(same, section=section)
                same, section = "", heading[1] or section
            same += line
        if same:
            yield Part(same, section=section)
