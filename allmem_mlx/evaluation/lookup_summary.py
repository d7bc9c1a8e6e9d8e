"""What the answers to questions with passages come to: hits, right answers, how much of
what was found is used, and what was invented."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..archive.citations import PLAIN, check
from ..archive.lookup import Lookup
from .columns import COLUMNS
from .intervals import ratio
from .lookups import FOUND, SOURCES, Asked
from .planting import PlantedBook, refuses
from .systems import ALLMEM_PASSAGES, ORACLE


def summary(
    asked: Sequence[list[Asked]],
    answers: Sequence[dict[str, str | None]] | None,
    planted: PlantedBook,
    seed: int = 0,
) -> dict[str, Any]:
    """Hits, right answers, and every question.

    Args:
        asked (list): of :func:`groups`.
        answers (list): of :func:`ask`; ``None`` if nothing was asked.
        planted (PlantedBook): the book.
        seed (int): of the intervals.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    questions = [x for group in asked for x in group]
    rows, start = [], 0
    for group in asked:
        first = group[0].question
        row: dict[str, Any] = {
            "set": first.kind,
            "distance": first.distance or None,
            "questions": len(group),
            "hits": None,
        }
        if first.statements:
            row["hits"] = {x: sum(asked.hit(x) for asked in group) for x in SOURCES}
        if answers is not None:
            row |= _counts(group, answers[start : start + len(group)])
        rows.append(row)
        start += len(group)
    found: dict[str, Any] = {"rows": rows}
    if answers is not None:
        found["sets"] = _by_set(questions, answers, seed)
        found["claims"] = _claims(questions, answers)
    told = answers if answers is not None else [{}] * len(questions)
    found["questions"] = [
        _record(x, said, planted) for x, said in zip(questions, told, strict=True)
    ]
    return found


def _counts(
    group: Sequence[Asked], answers: Sequence[dict[str, str | None]]
) -> dict[str, Any]:
    """By column how many were asked and right; of questions that the book does not
    answer also how many answers were invented."""
    counts: dict[str, dict[str, int]] = {"asked": {}, "right": {}}
    invented: dict[str, int] = {}
    for name in (column.name for column in COLUMNS):
        said = [(x, told[name]) for x, told in zip(group, answers, strict=True)]
        known = [(x, text) for x, text in said if text is not None]
        counts["asked"][name] = len(known)
        counts["right"][name] = sum(x.question.answered(text) for x, text in known)
        invented[name] = sum(is_invented(text) for _, text in known)
    if not group[0].question.statements:
        counts["invented"] = invented
    return counts


def is_invented(said: str) -> bool:
    """Whether an answer to what cannot be known says something."""
    return bool(said.strip()) and not refuses(said)


def _by_set(
    questions: Sequence[Asked], answers: Sequence[dict[str, str | None]], seed: int
) -> dict[str, Any]:
    """For each set, over all its distances: the share of right answers by column; how
    much of what was found is used; and how near that comes to the oracle."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(x.question.kind for x in questions):
        chosen = [
            (x, said)
            for x, said in zip(questions, answers, strict=True)
            if x.question.kind == name
        ]

        def right(column: str, chosen: Any = chosen) -> np.ndarray:
            told = [(x, said[column]) for x, said in chosen]
            known = [(x, text) for x, text in told if text is not None]
            return np.array([float(x.question.answered(text)) for x, text in known])

        shares = {column.name: right(column.name) for column in COLUMNS}
        found[name] = {
            "share of right answers": {
                column: vars(ratio(x, np.ones(len(x)), seed)) if len(x) else None
                for column, x in shares.items()
            }
        }
        if chosen[0][0].question.statements:
            hits = np.array([float(x.hit(FOUND)) for x, _ in chosen])
            used, best = shares[ALLMEM_PASSAGES], shares[ORACLE]
            found[name]["use"] = vars(ratio(used * hits, hits, seed))
            found[name]["of the oracle"] = vars(ratio(used, best, seed))
    return found


def _claims(
    questions: Sequence[Asked], answers: Sequence[dict[str, str | None]]
) -> dict[str, int]:
    """Of all answers with passages: the claims that were marked as found in one, and
    those that are not there, which must be none."""
    counts = {"answers": 0, "claims": 0, "found": 0, "violations": 0}
    for x, said in zip(questions, answers, strict=True):
        for column in COLUMNS:
            text = said[column.name]
            if column.passages is None or text is None:
                continue
            sources = x.lookups[column.passages].sources
            if sources:
                counts["answers"] += 1
                texts = [source.passage.text for source in sources]
                for claim in check(text, texts):
                    counts["claims"] += 1
                    counts["found"] += bool(claim.found)
                    places = [texts[number - 1] for number in claim.found]
                    counts["violations"] += any(
                        _plain(claim.text) not in _plain(place) for place in places
                    )
    return counts


def _plain(text: str) -> str:
    return " ".join(text.translate(PLAIN).split())


def _record(
    asked: Asked, said: dict[str, str | None], planted: PlantedBook
) -> dict[str, Any]:
    question = asked.question
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
            source: {"hit": asked.hit(source), **_sources(lookup)}
            for source, lookup in asked.lookups.items()
        },
        "answers": {
            name: {"said": text, "right": question.answered(text)}
            for name, text in said.items()
            if text is not None
        },
    }


def _sources(lookup: Lookup) -> dict[str, Any]:
    return {
        "sources": [
            {
                "where": source.passage.where,
                "first": source.passage.first,
                "last": source.passage.last,
            }
            for source in lookup.sources
        ],
        "left out": lookup.left_out,
    }
