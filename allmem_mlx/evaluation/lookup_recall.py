"""Recall from a planted book with passages that are looked up: all questions to all
columns."""

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
from .bars import Bar, no_bar
from .columns import COLUMNS, Answering, Column, Kept
from .lookups import Asked, Finder, Shelf, Shelves
from .planting import BETWEEN, SETS, PlantedBook, plant
from .recall_tasks import BEFORE
from .systems import ALLMEM_PASSAGES, CLOSED, ORACLE, OTHERS, RANDOM
from .texts import file_record, whole_text

# An answer takes seconds. Other sets than facts are for these columns only; and what
# has read nothing, and gets nothing of the document, has no distance: it is asked about
# the nearest facts.
OF_OTHER_SETS = (ALLMEM_PASSAGES, ORACLE)
WITHOUT_DISTANCE = (RANDOM, OTHERS, CLOSED)

DISTANCES = (2048, 8192, 32768, 131072)
SAMPLES = 24


@dataclass(frozen=True)
class Haystack:
    """A planted book and another document, to be searched.

    Args:
        planted (PlantedBook): the book.
        book (Shelf): the same, in its archive.
        other (Shelf): the other document.
        record (dict): what they are, and how long it took to index the book.
    """

    planted: PlantedBook
    book: Shelf
    other: Shelf
    record: dict[str, Any]


def haystack(
    files: Sequence[Path],
    tokenizer: Any,
    shelves: Shelves,
    sets: Sequence[str],
    distances: Sequence[int],
    samples: int,
    seed: int,
) -> Haystack:
    """Plants statements in all files but the last, one after the other.

    Args:
        files (list): text files; the last one is the other document.
        tokenizer: of the model.
        shelves (Shelves): where the archives are.
        sets (list): what will be asked.
        distances (list): see :func:`plant`.
        samples (int): the same.
        seed (int): the same.

    Raises:
        AllMemError: if there are too few files, or they are too short.
    """
    if len(files) < 2:
        raise AllMemError(
            "one control looks up in another document; give at least two texts, of "
            "which the last one is that"
        )
    text = "\n\n".join(whole_text(file) for file in files[:-1])
    distances = sorted(set(distances))
    planted = plant(text, tokenizer, distances, samples, seed)
    if missing := set(sets) - {question.kind for question in planted.questions}:
        raise AllMemError(
            f"{', '.join(sorted(missing))}: the statements are {BETWEEN[0]} to "
            f"{BETWEEN[1]} tokens back; the longest of --distances must be longer, "
            "131072 for one"
        )
    path = shelves.path(files[0].name)
    path.write_bytes(planted.text.encode())
    start = time.perf_counter()
    for _ in Document(path).pieces(tokenizer):
        pass
    tokenised = time.perf_counter()
    book = shelves.add(path)
    added = time.perf_counter()
    other = shelves.add(files[-1])
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


def groups(asked: Sequence[Asked], sets: Sequence[str]) -> list[list[Asked]]:
    """Questions of one set and distance together, in the order of the sets."""
    found: dict[tuple[str, int], list[Asked]] = {}
    for name in (name for name in SETS if name in sets):
        for x in asked:
            if x.question.kind == name:
                found.setdefault((name, x.question.distance), []).append(x)
    return list(found.values())


def search(
    model: Model, stack: Haystack, sets: Sequence[str], most: int, seed: int
) -> tuple[list[Asked], dict[str, float]]:
    """Looks up all questions of some sets, and their controls.

    Returns:
        tuple: the questions, and how many milliseconds a lookup took.
    """
    finder = Finder(model, stack.book, stack.other, most, seed)
    questions = [x for x in stack.planted.questions if x.kind in sets]
    spent = []
    for question in questions:
        start = time.perf_counter()
        finder.found(question)
        spent.append(1000 * (time.perf_counter() - start))
    asked = [finder.all(question) for question in questions]
    times = {"median": float(np.median(spent)), "most": max(spent)}
    return asked, times


def ask(
    model: Model,
    tokenizer: Any,
    planted: PlantedBook,
    asked: Sequence[list[Asked]],
    kept: Kept,
    bar: Bar = no_bar,
) -> list[dict[str, str | None]]:
    """What every column says to every question.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        planted (PlantedBook): what is read.
        asked (list): of :func:`groups`.
        kept (Kept): states and answers.
        bar (callable): shows how far it is.

    Returns:
        list: for each question what was said, by column; ``None`` where a column was
        not asked.
    """
    answering = Answering(model, tokenizer, planted.tokens, kept, bar)
    questions = [x.question for group in asked for x in group]
    nearest = min((x.distance for x in questions if x.kind == "facts"), default=0)
    answers: list[dict[str, str | None]] = [{} for group in asked for _ in group]
    with bar(len(answers) * len(COLUMNS), "answers") as done:
        start = 0
        for group in asked:
            tokens = _tail(planted, tokenizer, group)
            for column in COLUMNS:
                known = [x for x in group if _is_asked(column, x, nearest)]
                messages = [message(column, x) for x in known]
                tail = answering.tail(tokens, messages) if known else None
                for i, x in enumerate(group, start):
                    said = None
                    if _is_asked(column, x, nearest):
                        said = answering.say(column, message(column, x), tail)
                    answers[i][column.name] = said
                    done(1)
            start += len(group)
    return answers


def _tail(planted: PlantedBook, tokenizer: Any, group: Sequence[Asked]) -> int:
    """How many of the last tokens full attention needs: from 512 before the first of
    the statements; all if there are none."""
    statements = [x for asked in group for x in asked.question.statements]
    if not statements:
        return len(planted.tokens)
    first = max(statements, key=planted.places.__getitem__)
    length = len(tokenizer.encode(first, add_special_tokens=False))
    return planted.places[first] + length + BEFORE


def _is_asked(column: Column, asked: Asked, nearest: int) -> bool:
    if asked.question.kind != "facts":
        if column.name not in OF_OTHER_SETS:
            return False
    elif column.name in WITHOUT_DISTANCE and asked.question.distance != nearest:
        return False
    return column.passages is None or column.passages in asked.lookups


def message(column: Column, asked: Asked) -> str:
    """What a column is asked, with the passages that it gets."""
    text = asked.question.text
    return asked.lookups[column.passages].message(text) if column.passages else text
