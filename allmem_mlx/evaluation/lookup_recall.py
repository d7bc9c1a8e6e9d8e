"""Recall from a planted book with passages that are looked up: every column is asked
every question."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import Document
from ..errors import AllMemError
from ..model import Model
from .bars import bar
from .columns import COLUMNS, Answerer, Column, SavedAnswers
from .lookups import ArchivedDocument, Retrieval, Retriever, TemporaryArchives
from .planting import LATEST, PARAPHRASES, SETS, PlantedBook, plant
from .recall_tasks import BEFORE
from .systems import ALLMEM_PASSAGES, CLOSED, ORACLE, OTHERS, RANDOM
from .texts import file_record, whole_text

# An answer takes seconds, so that sets other than facts are for these columns only. A
# column that knows nothing of the document has no distance: it is asked about the
# nearest facts.
OF_OTHER_SETS = (ALLMEM_PASSAGES, ORACLE)
WITHOUT_DISTANCE = (RANDOM, OTHERS, CLOSED)


@dataclass(frozen=True)
class Haystack:
    """A planted book and another document, to be searched.

    Args:
        planted (PlantedBook): the book.
        book (ArchivedDocument): the same, in its archive.
        other (ArchivedDocument): the other document.
        record (dict): files, sizes, and the time that indexing took.
    """

    planted: PlantedBook
    book: ArchivedDocument
    other: ArchivedDocument
    record: dict[str, Any]


def haystack(
    files: Sequence[Path],
    tokenizer: Any,
    archives: TemporaryArchives,
    sets: Sequence[str],
    distances: Sequence[int],
    samples: int,
    seed: int,
) -> Haystack:
    """Plants statements in all files but the last, one after the other.

    Args:
        files (list): text files; the last one is the other document.
        tokenizer: of the model.
        archives (TemporaryArchives): gets two archives more.
        sets (list): sets of questions that will be asked.
        distances, samples, seed: see :func:`plant`.

    Raises:
        AllMemError: if there are too few files, or they are too short.
    """
    if len(files) < 2:
        raise AllMemError(
            "one control looks up passages of another document; give at least two "
            "texts: the last one is that document"
        )
    text = "\n\n".join(whole_text(file) for file in files[:-1])
    distances = sorted(set(distances))
    planted = plant(text, tokenizer, distances, samples, seed)
    if missing := set(sets) - {question.kind for question in planted.questions}:
        raise AllMemError(
            f"{', '.join(sorted(missing))}: the statements are {PARAPHRASES} to "
            f"{LATEST} tokens back; the longest of --distances must be longer, "
            "131072 for one"
        )
    path = archives.path(files[0].name)
    path.write_bytes(planted.text.encode())
    start = time.perf_counter()
    for _ in Document(path).pieces(tokenizer):
        pass
    tokenised = time.perf_counter()
    book = archives.add(path)
    added = time.perf_counter()
    other = archives.add(files[-1])
    record = {
        "files": [file_record(file) for file in files[:-1]],
        "sha256": hashlib.sha256(planted.text.encode()).hexdigest(),
        "tokens": len(planted.tokens),
        "passages": book.archive.count(),
        "archive bytes": book.bytes,
        "seconds of tokenising": tokenised - start,
        "seconds of indexing": max(0.0, added - tokenised - (tokenised - start)),
        "other document": {
            **file_record(files[-1]),
            "tokens": other.entry.tokens,
            "passages": other.archive.count(),
        },
    }
    return Haystack(planted, book, other, record)


def groups(found: Sequence[Retrieval], sets: Sequence[str]) -> list[list[Retrieval]]:
    """Questions of one set and distance together, in the order of the sets."""
    grouped: dict[tuple[str, int], list[Retrieval]] = {}
    for name in (name for name in SETS if name in sets):
        for x in found:
            if x.question.kind == name:
                grouped.setdefault((name, x.question.distance), []).append(x)
    return list(grouped.values())


def search(
    model: Model, stack: Haystack, sets: Sequence[str], limit: int, seed: int
) -> tuple[list[Retrieval], dict[str, float]]:
    """Looks up all questions of some sets, and their controls.

    Returns:
        tuple: the questions, and the milliseconds that a lookup took.
    """
    retriever = Retriever(model, stack.book, stack.other, limit, seed)
    questions = [x for x in stack.planted.questions if x.kind in sets]
    times = []
    for question in questions:
        start = time.perf_counter()
        retriever.search(question)
        times.append(1000 * (time.perf_counter() - start))
    found = [retriever.retrieve(question) for question in questions]
    return found, {"median": float(np.median(times)), "most": max(times)}


def ask(
    model: Model,
    tokenizer: Any,
    planted: PlantedBook,
    groups: Sequence[list[Retrieval]],
    saved: SavedAnswers,
) -> list[dict[str, str | None]]:
    """The answers of every column to every question.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        planted (PlantedBook): the document.
        groups (list): of :func:`groups`.
        saved (SavedAnswers): states and answers.

    Returns:
        list: for each question the answers by column; ``None`` where a column was not
        asked.
    """
    answerer = Answerer(model, tokenizer, planted.tokens, saved)
    facts = [
        x.question for group in groups for x in group if x.question.kind == "facts"
    ]
    nearest = min((x.distance for x in facts), default=0)
    answers: list[dict[str, str | None]] = []
    with bar(sum(map(len, groups)) * len(COLUMNS), "answers") as done:
        for group in groups:
            tokens = _tail(planted, tokenizer, group)
            answers += ({} for _ in group)
            for column in COLUMNS:
                messages = [
                    message(column, x) if _is_asked(column, x, nearest) else None
                    for x in group
                ]
                known = [x for x in messages if x is not None]
                tail = answerer.tail(tokens, known) if known else None
                for row, text in zip(answers[-len(group) :], messages, strict=True):
                    row[column.name] = text and answerer.answer(column, text, tail)
                    done.update(1)
    return answers


def _tail(planted: PlantedBook, tokenizer: Any, group: Sequence[Retrieval]) -> int:
    """The number of last tokens that full attention needs: from 512 before the first
    of the statements; all if there are none."""
    statements = [x for found in group for x in found.question.statements]
    if not statements:
        return len(planted.tokens)
    first = max(statements, key=planted.places.__getitem__)
    length = len(tokenizer.encode(first, add_special_tokens=False))
    return planted.places[first] + length + BEFORE


def _is_asked(column: Column, found: Retrieval, nearest: int) -> bool:
    if found.question.kind != "facts":
        if column.name not in OF_OTHER_SETS:
            return False
    elif column.name in WITHOUT_DISTANCE and found.question.distance != nearest:
        return False
    return column.passages is None or column.passages in found.lookups


def message(column: Column, found: Retrieval) -> str:
    """The question to a column, with the passages that it gets."""
    text = found.question.text
    return found.lookups[column.passages].message(text) if column.passages else text
