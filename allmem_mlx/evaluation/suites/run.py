"""The responses of every system to the examples of a suite."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...chat_template import Template
from ...errors import AllMemError
from ...model import Model
from ..intervals import ratio
from ..lookups import TemporaryArchives
from ..systems import Reader, systems
from .infinitebench import INFINITEBENCH
from .longbench import LONGBENCH
from .lveval import LVEVAL
from .passages import Passages
from .ruler import RULER
from .suite import Example, read

SUITES = {suite.name: suite for suite in (LONGBENCH, INFINITEBENCH, LVEVAL, RULER)}


def load(name: str, sources: Sequence[str], limit: int | None = None) -> list[Example]:
    """The examples of a suite in files and folders.

    Args:
        name (str): a key of :data:`SUITES`.
        sources (list): files and folders.
        limit (int): first examples of each subset only.

    Raises:
        AllMemError: see :func:`suite.read`; if all are about one document.
    """
    subsets: dict[str, list[Example]] = {}
    for example in read(SUITES[name], sources):
        subsets.setdefault(example.subset, []).append(example)
    examples = [x for subset in subsets.values() for x in subset[:limit]]
    neighbours(examples)
    return examples


class Prompts:
    """Examples as token ids.

    Args:
        tokenizer: of the model.
        max_length (int): tokens of a prompt; the middle of a longer one is left out,
            as by LongBench. ``None`` for any number.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.stops = set(tokenizer.eos_token_ids)
        chat = tokenizer.has_chat_template
        self.template = Template.of_chat(tokenizer) if chat else None

    def tokens(self, example: Example, limit: int | None) -> tuple[list[int], bool]:
        """A prompt, and ``True`` if it was cut.

        Args:
            example (Example): the example.
            limit (int): tokens of prompt and answer that a system can read.
        """
        longest = self.max_length
        before = after = ""
        if example.chat and self.template is not None:
            before, after = self.template.opening, self.template.closing
        if limit is not None:
            around = len(self.tokenizer.encode(before + after))
            room = max(2, limit - example.max_tokens - around)
            longest = room if longest is None else min(longest, room)
        text = example.prompt
        ids = self.tokenizer.encode(text)
        if cut := longest is not None and len(ids) > longest:
            half = longest // 2
            text = "".join(
                self.tokenizer.decode(part, skip_special_tokens=True)
                for part in (ids[:half], ids[-half:])
            )
        if before or after:
            text = before + text + after
            return self.tokenizer.encode(text, add_special_tokens=False), cut
        return self.tokenizer.encode(text), cut


def neighbours(examples: Sequence[Example]) -> list[Example]:
    """For each example the next one with another context; its memory is lent.

    Raises:
        AllMemError: if there is none.
    """
    if len({example.context for example in examples}) < 2:
        raise AllMemError(
            "one control reads the memory of another document; give at least two "
            "records with different contexts"
        )
    found = []
    for i, example in enumerate(examples):
        following = [*examples[i + 1 :], *examples[:i]]
        found.append(next(x for x in following if x.context != example.context))
    return found


def run(
    model: Model,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
    passages: int | None = None,
) -> list[dict[str, Any]]:
    """Asks every system about every example.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        examples (list): of :func:`load`.
        max_length (int): see :class:`Prompts`.
        progress: called with the number of tokens of each prompt.
        passages (int): passages to look up, for columns of their own; ``None`` for no
            such columns.

    Returns:
        list: JSON, an object for each response.
    """
    prompts, compared = Prompts(tokenizer, max_length), systems(model)
    named = {system.name: system for system in compared}
    answers = []
    with TemporaryArchives(tokenizer) as archives:
        finder = Passages(model, tokenizer, passages, archives) if passages else None
        for example, other in zip(examples, neighbours(examples), strict=True):
            lent, _ = prompts.tokens(other, None)
            asked = {name: (name, example) for name in named}
            if finder is not None:
                asked |= finder.examples(example)
            for name, (system, x) in asked.items():
                tokens, cut = prompts.tokens(x, named[system].limit)
                reader = Reader(named[system], model, lent)
                reader.read(tokens[:-1])
                ids = reader.answer(tokens[-1:], x.max_tokens, prompts.stops)
                response = tokenizer.decode(ids, skip_special_tokens=True)
                answers.append(
                    {
                        "subset": example.subset,
                        "system": name,
                        "tokens": len(tokens),
                        "cut": cut,
                        "expected": example.answers,
                        "said": response,
                        "score": example.score(response),
                    }
                )
                progress(len(tokens))
    return answers


def summary(answers: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Mean scores by subset and system, in percent, as the suites print them.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    rows = []
    for subset in dict.fromkeys(answer["subset"] for answer in answers):
        scores: dict[str, list[float]] = {}
        cut: dict[str, int] = {}
        for answer in answers:
            if answer["subset"] == subset:
                name = answer["system"]
                scores.setdefault(name, []).append(100 * answer["score"])
                cut[name] = cut.get(name, 0) + answer["cut"]
        rows.append(
            {
                "subset": subset,
                "examples": max(map(len, scores.values())),
                "score": {
                    name: vars(ratio(np.array(x), np.ones(len(x)), seed))
                    for name, x in scores.items()
                },
                "cut": cut,
            }
        )
    return {"rows": rows, "answers": list(answers)}
