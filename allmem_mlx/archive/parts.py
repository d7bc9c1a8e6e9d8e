"""The parts of a document that are summarised: sections, divided or joined."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ..documents import Mark
from .archive import Archive
from .passage import Entry, Passage

SHORT = 8  # a section of less than an eighth of a part is joined to the next


@dataclass(frozen=True)
class Part:
    """Consecutive passages of a document.

    Args:
        document (int): the document's number in the archive.
        first, last (int): its tokens, counted from the start of the document.
        number, count (int): its first passage, and the number of its passages.
        start, end (Mark): the origins of its first and its last passage.
        place, until (float): fractions of the document, 0 to 1, where it begins and
            ends.
    """

    document: int
    first: int
    last: int
    number: int
    count: int
    start: Mark
    end: Mark
    place: float
    until: float

    @classmethod
    def of(cls, passage: Passage, entry: Entry) -> "Part":
        """A part of one passage."""
        return cls(
            *(entry.id, passage.first, passage.last, passage.number, 1),
            *(passage.mark, passage.mark, passage.place),
            (passage.last + 1) / max(1, entry.tokens),
        )

    @property
    def tokens(self) -> int:
        return self.last + 1 - self.first

    @property
    def where(self) -> str:
        """The name of the file, with pages and sections, or else percentages."""
        start, end = self.start, self.end
        if start.source != end.source:
            return f"{start.source} to {end.source}"
        parts = [start.source]
        if start.page is not None and end.page is not None:
            one = start.page == end.page
            parts.append(
                f"page {start.page}" if one else f"pages {start.page} to {end.page}"
            )
        sections = [*filter(None, dict.fromkeys((start.section, end.section)))]
        if sections:
            parts.append(" to ".join(sections))
        if len(parts) == 1:
            place, until = 100 * self.place, 100 * self.until
            parts.append(f"{place:.0f} to {until:.0f} %")
        return ", ".join(parts)

    def through(self, other: "Part") -> "Part":
        """The span of this part and those after it, up to the end of another."""
        return replace(
            self,
            last=other.last,
            count=self.count + other.count,
            end=other.end,
            until=other.until,
        )


def parts(archive: Archive, entry: Entry, size: int) -> Iterator[Part]:
    """Cuts a document into parts.

    A part is a section. A long section is cut where a passage ends, and consecutive
    short ones are joined.

    Args:
        archive (Archive): the archive of the document.
        entry (Entry): the document.
        size (int): tokens of a part, about.
    """
    short = size // SHORT

    def in_a_section(part: Part, other: Part) -> bool:
        return _same_section(part, other) and part.through(other).tokens <= size

    def short_ones(part: Part, other: Part) -> bool:
        # The short end of a long section stays with it, a heading with what follows.
        end = _same_section(part, other) and other.tokens < short
        fits = part.through(other).tokens <= size + short
        return (end or part.tokens < short) and fits

    passages = (Part.of(passage, entry) for passage in archive.passages(entry))
    return _joined(_joined(passages, in_a_section), short_ones)


def _joined(
    parts: Iterable[Part], belong: Callable[[Part, Part], bool]
) -> Iterator[Part]:
    """Joins consecutive parts that belong together."""
    joined: Part | None = None
    for part in parts:
        if joined is None:
            joined = part
        elif belong(joined, part):
            joined = joined.through(part)
        else:
            yield joined
            joined = part
    if joined is not None:
        yield joined


def _same_section(part: Part, other: Part) -> bool:
    end, start = part.end, other.start
    return (end.source, end.section) == (start.source, start.section)
