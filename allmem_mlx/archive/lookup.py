"""The passages that are looked up for a question and put before it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AllMemError
from ..state import State
from .archive import Archive
from .cutting import sentences
from .passage import Entry, Passage
from .terms import terms

# search(question, k, documents): the best k passages of the documents with numbers.
Search = Callable[[str, int, list[int]], list[Passage]]


@dataclass(frozen=True)
class Source:
    """A passage before a question.

    Args:
        number (int): its number there, from 1, the best one first.
        passage (Passage): the passage.
        read (bool): whether the model has read it in the document.
    """

    number: int
    passage: Passage
    read: bool

    @property
    def quoted(self) -> str:
        """The number, the place and the text, as a quotation."""
        return quoted(self.number, self.passage.where, self.passage.text)


@dataclass(frozen=True)
class Lookup:
    """The result of a search for a question.

    Args:
        sources (list): the passages before the question, the best first.
        left_out (int): passages that were found, but have no room.
        searched (int): passages that were searched.
        read (int): tokens of the documents that the model has read.
        tokens (int): tokens of the documents.
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
        """The passages as text, the best last, from which a small model answers."""
        return "".join(source.quoted for source in reversed(self.sources))

    def message(self, question: str) -> str:
        """The question, after the passages."""
        return self.quoted + framed(question) if self.sources else question

    @property
    def summary(self) -> str:
        """One line on the passages and on how much was read."""
        looked = f"{len(self.sources)} of {self.searched} passages looked up"
        if self.left_out:
            looked += (
                f" ({self.left_out} more found, but the window has no room for them)"
            )
        if not self.read:
            return looked
        share = 100 * self.read // self.tokens
        return f"{looked}; {share} % of the document has been read"


def quoted(number: int, where: str, text: str) -> str:
    """A text with its number and place, in a fence that is longer than any in it."""
    longest = max(map(len, re.findall('"+', text)), default=0)
    fence = '"' * max(3, longest + 1)
    where = " ".join(where.split())  # a name may have line breaks
    return f"[{number}] {where}\n{fence}\n{text}\n{fence}\n\n"


def framed(question: str) -> str:
    """A question after passages."""
    return f"Question: {question}\nAnswer:"


def entries_by_key(archive: Archive, state: State) -> dict[str, Entry]:
    """The documents of an archive, after a check against a state.

    Raises:
        AllMemError: if the archive lacks a document that the state has read.
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


def is_unfinished(archive: Archive, state: State) -> bool:
    """Whether a state is in the middle of a document.

    Raises:
        AllMemError: if the archive lacks a document that the state has read.
    """
    entries = entries_by_key(archive, state)
    return any(
        stop is None and state.tokens - start < entries[key].tokens
        for key, start, stop in state.notes.get("documents", [])
    )


def look_up(
    archive: Archive,
    state: State,
    question: str,
    limit: int,
    room: int,
    length: Callable[[str], int],
    search: Search,
) -> Lookup:
    """Looks up passages that may answer a question, in the documents of a state.

    Args:
        archive (Archive): the archive of the documents.
        state (State): the state.
        question (str): the question.
        limit (int): maximum number of passages; neighbours count as one.
        room (int): maximum tokens of the passages.
        length: counts the tokens of a text.
        search: finds passages; see :class:`.Finder`.

    Raises:
        AllMemError: if the archive does not belong to the state.
    """
    entries = entries_by_key(archive, state)
    known = {entries[key]: count for key, count in state.documents.items()}
    read = {entry.id: _read(entry, count, state) for entry, count in known.items()}
    documents = [entry.id for entry in known]
    found = merged(search(question, limit, documents))
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
    taken = sum(source.passage.count for source in sources)
    return Lookup(
        sources,
        left_out=sum(passage.count for passage in found) - taken,
        searched=archive.count(documents),
        read=sum(min(read[entry.id], entry.tokens) for entry in known),
        tokens=sum(entry.tokens for entry in known),
        documents=documents,
    )


def _read(entry: Entry, count: int, state: State) -> int:
    """The tokens of a document that the model will have read when it is asked, without
    those that still wait in the middle of it."""
    return count if count >= entry.tokens else max(0, count - len(state.waiting))


def merged(found: Sequence[Passage]) -> list[Passage]:
    """Passages of which neighbours on a page, or in a section, are joined, at the rank
    of the better one."""
    passages: list[Passage] = []
    for passage in found:
        for i, other in enumerate(passages):
            first, second = sorted((passage, other), key=lambda x: x.number)
            if (
                _place(first) == _place(second)
                and second.number == first.number + first.count
            ):
                passages[i] = replace(
                    first,
                    text=f"{first.text}\n{second.text}",
                    last=second.last,
                    count=first.count + second.count,
                )
                break
        else:
            passages.append(passage)
    return passages


def _place(passage: Passage) -> tuple[Any, ...]:
    mark = passage.mark
    return passage.document, mark.source, mark.page, mark.section


def _shortened(
    source: Source, question: str, room: int, length: Callable[[str], int]
) -> Source:
    """A passage shortened to the sentences around the one that is most like the
    question, if it is too long."""
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
