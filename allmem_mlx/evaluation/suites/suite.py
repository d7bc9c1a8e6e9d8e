"""Examples of a suite, and JSONL files of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AllMemError

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A prompt and its score.

    Args:
        subset (str): the subset that it belongs to.
        context (str): the text that it is about.
        prompt (str): the whole prompt, the context included.
        answers (list): right answers.
        max_tokens (int): tokens to generate at most.
        chat (bool): ``True`` if the prompt is a message in the chat template.
        score (callable): a response's score, from 0 to 1.
        question (str): the question alone, to look up passages; empty if unknown.
    """

    subset: str
    context: str
    prompt: str
    answers: list[str]
    max_tokens: int
    chat: bool
    score: Callable[[str], float]
    question: str = ""


@dataclass(frozen=True)
class Subset:
    """The prompt of a subset, and how its responses are scored.

    Args:
        prompt (str): with the names of a record's fields in braces.
        metric (callable): of a response and what it is compared with.
        max_tokens (int): tokens to generate at most.
        chat (bool): ``True`` if the prompt is a message in the chat template.
    """

    prompt: str
    metric: Callable[..., float]
    max_tokens: int
    chat: bool = True

    def example(
        self,
        name: str,
        record: Record,
        answers: list[str],
        score: Callable[[str], float],
    ) -> Example:
        """An example from a record with a ``context`` and an ``input``."""
        context, question = record["context"], record["input"]
        prompt = self.prompt.format(context=context, input=question, question=question)
        return Example(
            subset=name,
            context=context,
            prompt=prompt,
            answers=answers,
            max_tokens=self.max_tokens,
            chat=self.chat,
            score=score,
            question=question,
        )


@dataclass(frozen=True)
class Suite:
    """A public suite.

    Args:
        name (str): as on the command line.
        subset (callable): the subset that a file has, by its path; ``None`` if it is
            not one of the suite.
        example (callable): an example, of a subset and a record.
        fields (dict): the fields that a record must have, and their types.
        files (str): the names of its files, for messages.
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
        files = [source]
        if source.is_dir():
            files = [x for x in sorted(source.rglob("*.jsonl")) if suite.subset(x)]
        if not files:
            raise AllMemError(
                f"{str(source)!r} has no files of {suite.name} ({suite.files})"
            )
        for file in files:
            subset = suite.subset(file)
            if subset is None:
                raise AllMemError(
                    f"{str(file)!r} is not named like a file of {suite.name} "
                    f"({suite.files})"
                )
            examples += [suite.example(subset, x) for x in records(file, suite.fields)]
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
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise AllMemError(f"{str(path)!r} has no records")
    for number, line in numbered:
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
        yield record


def best(
    metric: Callable[[str, str], float], answers: Sequence[str]
) -> Callable[[str], float]:
    """The best score over several right answers."""
    return lambda response: max(metric(response, answer) for answer in answers)
