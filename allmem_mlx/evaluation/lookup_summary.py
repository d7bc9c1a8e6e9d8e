"""A summary of the answers to questions with passages: hits, right answers, the use
of the passages, and invented answers."""

from collections.abc import Sequence
from itertools import islice, repeat
from typing import Any

import numpy as np

from ..archive.citations import PLAIN, check
from .columns import COLUMNS
from .intervals import ratio
from .lookups import FOUND, SOURCES, Retrieval
from .planting import PlantedBook, refuses
from .systems import ALLMEM_PASSAGES, ORACLE

# A question, and the answers to it by column; ``None`` where a column was not asked.
Answered = tuple[Retrieval, dict[str, str | None]]


def summary(
    groups: Sequence[list[Retrieval]],
    answers: Sequence[dict[str, str | None]] | None,
    planted: PlantedBook,
    seed: int = 0,
) -> dict[str, Any]:
    """Hits, right answers, and every question.

    Args:
        groups (list): of :func:`lookup_recall.groups`.
        answers (list): of :func:`lookup_recall.ask`; ``None`` if nothing was asked.
        planted (PlantedBook): the book.
        seed (int): of the intervals.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    remaining = repeat({}) if answers is None else iter(answers)
    answered: list[Answered] = []
    rows = []
    for group in groups:
        first = group[0].question
        row: dict[str, Any] = {
            "set": first.kind,
            "distance": first.distance or None,
            "questions": len(group),
            "hits": None,
        }
        if first.statements:
            row["hits"] = {x: sum(found.hit(x) for found in group) for x in SOURCES}
        pairs = list(zip(group, islice(remaining, len(group)), strict=True))
        if answers is not None:
            row |= _counts(pairs)
        rows.append(row)
        answered += pairs
    result: dict[str, Any] = {"rows": rows}
    if answers is not None:
        result["sets"] = _by_set(answered, seed)
        result["claims"] = _claims(answered)
    result["questions"] = [_record(*pair, planted) for pair in answered]
    return result


def _of_column(name: str, answered: Sequence[Answered]) -> list[tuple[Retrieval, str]]:
    """The questions that a column was asked, with its answers."""
    pairs = ((x, answers[name]) for x, answers in answered)
    return [(x, answer) for x, answer in pairs if answer is not None]


def _counts(answered: Sequence[Answered]) -> dict[str, Any]:
    """By column the numbers of questions and of right answers; of questions that the
    book does not answer also that of invented answers."""
    counts: dict[str, dict[str, int]] = {"asked": {}, "right": {}, "invented": {}}
    for name in (column.name for column in COLUMNS):
        pairs = _of_column(name, answered)
        counts["asked"][name] = len(pairs)
        counts["right"][name] = sum(x.question.answered(text) for x, text in pairs)
        counts["invented"][name] = sum(is_invented(text) for _, text in pairs)
    if answered[0][0].question.statements:
        del counts["invented"]
    return counts


def is_invented(answer: str) -> bool:
    """``True`` for an answer that does not refuse a question without an answer."""
    return bool(answer.strip()) and not refuses(answer)


def _by_set(answered: Sequence[Answered], seed: int) -> dict[str, Any]:
    """For each set, over all its distances: the share of right answers by column, the
    use of passages with the answer, and right answers over those of the oracle."""
    result: dict[str, Any] = {}
    for kind in dict.fromkeys(x.question.kind for x, _ in answered):
        chosen = [pair for pair in answered if pair[0].question.kind == kind]
        right = {
            column.name: np.array(
                [
                    float(x.question.answered(y))
                    for x, y in _of_column(column.name, chosen)
                ]
            )
            for column in COLUMNS
        }
        result[kind] = {
            "share of right answers": {
                name: vars(ratio(x, np.ones(len(x)), seed)) if len(x) else None
                for name, x in right.items()
            }
        }
        if chosen[0][0].question.statements:
            hits = np.array([float(x.hit(FOUND)) for x, _ in chosen])
            used, best = right[ALLMEM_PASSAGES], right[ORACLE]
            result[kind]["use"] = vars(ratio(used * hits, hits, seed))
            result[kind]["of the oracle"] = vars(ratio(used, best, seed))
    return result


def _claims(answered: Sequence[Answered]) -> dict[str, int]:
    """Of all answers with passages: the claims that were marked as found in one, and
    those that are not there, which must be none."""
    counts = {"answers": 0, "claims": 0, "found": 0, "violations": 0}
    for column in COLUMNS:
        if column.passages is None:
            continue
        for x, answer in _of_column(column.name, answered):
            texts = [y.passage.text for y in x.lookups[column.passages].sources]
            if not texts:
                continue
            counts["answers"] += 1
            for claim in check(answer, texts):
                counts["claims"] += 1
                counts["found"] += bool(claim.found)
                counts["violations"] += any(
                    _plain(claim.text) not in _plain(texts[number - 1])
                    for number in claim.found
                )
    return counts


def _plain(text: str) -> str:
    return " ".join(text.translate(PLAIN).split())


def _record(
    found: Retrieval, answers: dict[str, str | None], planted: PlantedBook
) -> dict[str, Any]:
    question = found.question
    return {
        "set": question.kind,
        "distance": question.distance or None,
        "question": question.text,
        "expected": list(question.answers),
        "statements": [
            {"text": x, "tokens after it": planted.places[x]}
            for x in question.statements
        ],
        "lookups": {
            source: {
                "hit": found.hit(source),
                "sources": [
                    {x: getattr(passage, x) for x in ("where", "first", "last")}
                    for passage in (y.passage for y in lookup.sources)
                ],
                "left out": lookup.left_out,
            }
            for source, lookup in found.lookups.items()
        },
        "answers": {
            name: {"said": text, "right": question.answered(text)}
            for name, text in answers.items()
            if text is not None
        },
    }
