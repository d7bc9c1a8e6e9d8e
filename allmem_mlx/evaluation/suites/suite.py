"""What the suites have in common: examples, and JSONL files of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AllMemError

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One thing that is asked.

    Args:
        subset (str): where it belongs.
        context (str): the text that it is about.
        prompt (str): all that the model gets, the context included.
        answers (list): right answers.
        most (int): tokens to generate at most.
        chat (bool): whether the prompt is a message in the chat template.
        score (callable): a response's score, from 0 to 1.
        question (str): what passages are looked up with; empty if that is not known.
    """

    subset: str
    context: str
    prompt: str
    answers: list[str]
    most: int
    chat: bool
    score: Callable[[str], float]
    question: str = ""


@dataclass(frozen=True)
class Suite:
    """A public suite.

    Args:
        name (str): as on the command line.
        subset (callable): the subset that a file has, by its path; ``None`` if it is
            not one of the suite.
        example (callable): an example, of a subset and a record.
        fields (dict): what a record must have, and of what type.
        files (str): what its files are called, for messages.
    """

    name: str
    subset: Callable[[Path], str | None]
    example: Callable[[str, Record], Example]
    fields: dict[str, type]
    files: str


def read(suite: Suite, sources: Sequence[str | Path]) -> list[Example]:
    """The examples of files, and of all files of the suite in folders.

    Raises:
        AllMemError: naming the file and line, if something is not in the suite's
            format; if there is nothing.
    """
    examples = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(source.rglob("*.jsonl"))
            files = [file for file in found if suite.subset(file)]
            if not files:
                raise AllMemError(
                    f"{str(source)!r} has no files of {suite.name} ({suite.files})"
                )
        else:
            files = [source]
        for file in files:
            subset = suite.subset(file)
            if subset is None:
                raise AllMemError(
                    f"{str(file)!r} is not called as a file of {suite.name} "
                    f"({suite.files})"
                )
            examples += [
                suite.example(subset, record) for record in records(file, suite.fields)
            ]
    return examples


def records(path: Path, fields: dict[str, type]) -> Iterator[Record]:
    """The objects in the lines of a file; empty lines are skipped.

    Raises:
        AllMemError: naming the line, if it is no object with these fields.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise AllMemError(
            f"{str(path)!r} cannot be read ({error.strerror}); check the name"
        ) from None
    except UnicodeDecodeError:
        raise AllMemError(f"{str(path)!r} is not UTF-8 text") from None
    empty = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise AllMemError(f"{where} is not JSON; get the file again") from None
        if not isinstance(record, dict):
            raise AllMemError(f"{where} is not a JSON object")
        for name, kind in fields.items():
            if not isinstance(record.get(name), kind):
                raise AllMemError(
                    f"{where} has no field {name!r} of type {kind.__name__}"
                )
            if kind is list:
                values = record[name]
                if not values or not all(isinstance(x, str) for x in values):
                    raise AllMemError(f"{where}: {name!r} is not a list of texts")
        empty = False
        yield record
    if empty:
        raise AllMemError(f"{str(path)!r} has no records")


def best(
    metric: Callable[[str, str], float], answers: Sequence[str]
) -> Callable[[str], float]:
    """The best score over several right answers."""
    return lambda said: max(metric(said, answer) for answer in answers)
