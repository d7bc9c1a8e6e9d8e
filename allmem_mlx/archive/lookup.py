"""What is looked up for a question, and how it is put before it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AllMemError
from ..state import State
from .archive import Archive, Entry, Passage
from .cutting import sentences
from .terms import terms

# search(question, k, documents): the best k passages of documents, by their numbers.
Search = Callable[[str, int, list[int]], list[Passage]]


@dataclass(frozen=True)
class Source:
    """A passage that was put before a question.

    Args:
        number (int): what it is called there, from 1, the best one first.
        passage (Passage): the passage.
        read (bool): whether the model has read it in the document.
    """

    number: int
    passage: Passage
    read: bool

    @property
    def quoted(self) -> str:
        """Its number, place and text, as a quotation."""
        return quoted(self.number, self.passage.where, self.passage.text)


@dataclass(frozen=True)
class Lookup:
    """What was found for a question.

    Args:
        sources (list): the passages that are put before it, the best first.
        left_out (int): passages that were found, but have no room.
        searched (int): passages that were searched.
        read (int): tokens of the documents that the model has read ...
        tokens (int): ... of so many.
        documents (list): numbers of the documents.
    """

    sources: Sequence[Source]
    left_out: int
    searched: int
    read: int
    tokens: int
    documents: Sequence[int] = ()

    @property
    def quoted(self) -> str:
        """What was found, the best passage last: a small model answers from that."""
        return "".join(source.quoted for source in reversed(self.sources))

    def message(self, question: str) -> str:
        """The question, with what was found before it."""
        return self.quoted + framed(question) if self.sources else question

    @property
    def summary(self) -> str:
        """What was looked at, in a line."""
        looked = f"{len(self.sources)} of {self.searched} passages looked up"
        if self.left_out:
            looked += f" ({self.left_out} more found, for which there is no room)"
        if not self.read:
            return looked
        share = 100 * self.read // self.tokens
        return f"{looked}; {share} % of the document has been read"


def quoted(number: int, where: str, text: str) -> str:
    """A text with its number and place, within a fence that is not in the text."""
    longest = max(map(len, re.findall('"+', text)), default=0)
    fence = '"' * max(3, longest + 1)
    where = " ".join(where.split())  # a name may have line breaks
    return f"[{number}] {where}\n{fence}\n{text}\n{fence}\n\n"


def framed(question: str) -> str:
    """A question after passages."""
    return f"Question: {question}\nAnswer:"


def belongs(archive: Archive, state: State) -> dict[str, Entry]:
    """The documents that a state has read, in its archive.

    Raises:
        AllMemError: if the archive lacks what was read.
    """
    entries = {entry.key: entry for entry in archive.documents()}
    for key, count in state.documents.items():
        known = entries.get(key)
        if known is None or not known.complete and known.tokens < count:
            raise AllMemError(
                f"{archive.name} does not belong to the state: it lacks a document "
                "that was read; name its own with --archive, or use --no-archive"
            )
    return entries


def look_up(
    archive: Archive,
    state: State,
    question: str,
    most: int,
    room: int,
    length: Callable[[str], int],
    search: Search,
) -> Lookup:
    """Looks up what may answer a question, in the documents of a state.

    Args:
        archive (Archive): where they are.
        state (State): what was read.
        question (str): in the user's words.
        most (int): passages at most; neighbours count as one.
        room (int): tokens for them.
        length: tokens of a text.
        search: finds passages; see :class:`Finder`.

    Raises:
        AllMemError: if the archive does not belong to the state.
    """
    entries = belongs(archive, state)
    counts = state.documents
    known = {entries[key].id: entries[key] for key in counts}
    read = {
        entries[key].id: _read(entries[key], count, state)
        for key, count in counts.items()
    }
    found = merged(search(question, most, list(known)))
    room -= length(framed(question)) - length(question)
    sources: list[Source] = []
    for passage in found:
        number = len(sources) + 1
        source = Source(number, passage, passage.last < read[passage.document])
        if not sources:
            source = _shortened(source, question, room, length)
        if (size := length(source.quoted)) > room:
            continue
        room -= size
        sources.append(source)
    tokens = sum(entry.tokens for entry in known.values())
    return Lookup(
        sources,
        sum(passage.count for passage in found)
        - sum(source.passage.count for source in sources),
        archive.count(list(known)),
        sum(min(read[i], entry.tokens) for i, entry in known.items()),
        tokens,
        list(known),
    )


def _read(entry: Entry, count: int, state: State) -> int:
    """Tokens of a document that the model will have read when it is asked: what waits
    to be read in the middle of one is left out."""
    return count if count >= entry.tokens else max(0, count - len(state.waiting))


def merged(found: Sequence[Passage]) -> list[Passage]:
    """Passages of which neighbours on a page, or in a section, are one, in the place of
    the better one."""
    kept: list[Passage] = []
    for passage in found:
        for i, other in enumerate(kept):
            first, second = sorted((passage, other), key=lambda x: x.number)
            if (
                _place(first) == _place(second)
                and second.number == first.number + first.count
            ):
                kept[i] = replace(
                    first,
                    text=f"{first.text}\n{second.text}",
                    last=second.last,
                    count=first.count + second.count,
                )
                break
        else:
            kept.append(passage)
    return kept


def _place(passage: Passage) -> tuple[Any, ...]:
    mark = passage.mark
    return passage.document, mark.source, mark.page, mark.section


def _shortened(
    source: Source, question: str, room: int, length: Callable[[str], int]
) -> Source:
    """A passage that is too long, as the sentences around the one that is most like the
    question."""
    if length(source.quoted) <= room:
        return source
    text = source.passage.text
    spans = sentences(text)

    def part(first: int, last: int) -> Source:
        shown = text[spans[first][0] : spans[last][1]].strip()
        return replace(source, passage=replace(source.passage, text=shown, count=1))

    wanted = set(terms(question))
    common = [len(wanted & set(terms(text[start:end]))) for start, end in spans]
    first = last = common.index(max(common))
    while True:
        for a, b in ((first - 1, last), (first, last + 1)):
            fits = a >= 0 and b < len(spans) and length(part(a, b).quoted) <= room
            if fits:
                first, last = a, b
                break
        else:
            return part(first, last)
