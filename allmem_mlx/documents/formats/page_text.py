r"""Repairs the text of printed pages.

1. Running headers and footers. Up to two lines at each edge of a page are candidates.
   A line is dropped if it matches the line in the same place, counted from the same
   edge, on at least two of the four pages before and the four after. Two lines match if
   they are equal apart from numbers, and each pair of numbers is equal or differs by
   exactly as much as the page numbers do: ``12 | Annual Report 2024`` matches ``13 |
   Annual Report 2024`` on the next page, rows of figures do not match. If a third line
   matches as well, the text itself repeats, and that edge loses nothing; nor does a
   page that would be left empty.
2. Hyphens. A hyphen at the end of a line, between a letter and a lower-case letter at
   the start of the next, is dropped, and the two lines become one. Soft hyphens are
   dropped everywhere. A word that continues on the next page is left as it is.
3. Ligatures (U+FB00 to U+FB06) become their letters.

``\r\n`` becomes ``\n``, spaces at the end of a line and control characters other than
tab and newline are dropped, and a page that has text ends with a newline. Everything
else stays, line breaks included.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

WINDOW = 4  # pages before and after
MATCHES = 2  # pages among them that have the same line
EDGES = ((0, 1, 2), (-1, -2, -3))  # places of lines

LIGATURES = {
    code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)
}
CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f]")
NUMBER = re.compile(r"(\d{1,9})")
HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u00ad]\n(?=([^\W\d_]))")

Lines = list[str]


def mend(pages: Iterable[str]) -> Iterator[str]:
    """Yields the text of each page, repaired by the rules above.

    It is four pages ahead of what it has yielded.
    """
    # The page itself is in the middle.
    window: deque[tuple[int, Lines]] = deque(maxlen=2 * WINDOW + 1)
    for number, text in enumerate(chain(pages, [""] * WINDOW)):
        window.append((number, _lines(text)))
        if number >= WINDOW:
            yield _joined(_without_running_lines(list(window)))


def _lines(text: str) -> Lines:
    text = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.strip("\n").translate(LIGATURES).split("\n") if text.strip() else []


def _joined(lines: Lines) -> str:
    text = "".join(f"{line.rstrip(' ')}\n" for line in lines)
    text = HYPHEN.sub(lambda match: "" if match[1].islower() else match[0], text)
    return text.replace("\u00ad", "")


def _without_running_lines(window: list[tuple[int, Lines]]) -> Lines:
    number, lines = window[-1 - WINDOW]

    def repeats(place: int) -> bool:
        """Whether the line in a place is on the other pages too."""
        line = _at(lines, place)
        return line is not None and MATCHES <= sum(
            _match(line, _at(other_lines, place), other - number)
            for other, other_lines in window
            if other != number
        )

    dropped = set()
    for *places, third in EDGES:
        if len(lines) <= 4 or not repeats(third):
            dropped |= {place % len(lines) for place in places if repeats(place)}
    rest = [line for i, line in enumerate(lines) if i not in dropped]
    return rest if any(line.strip() for line in rest) else lines


def _at(lines: Lines, place: int) -> str | None:
    return lines[place] if -len(lines) <= place < len(lines) else None


def _match(line: str, other: str | None, apart: int) -> bool:
    """Whether lines of two pages, ``apart`` pages from each other, are the same
    running line."""
    if other is None:
        return False
    first, second = (NUMBER.split(" ".join(x.split())) for x in (line, other))
    # Numbers are at the odd places.
    return first[::2] == second[::2] and all(
        a == b or int(b) - int(a) == apart
        for a, b in zip(first[1::2], second[1::2], strict=True)
    )
