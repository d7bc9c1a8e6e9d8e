"""Every system on the examples of a suite, by generation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...chat_template import Template
from ...errors import AllMemError
from ...model import Model
from ..intervals import ratio
from ..lookups import Shelves
from ..systems import Reader, System, systems
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
        longest (int): tokens of a prompt; of a longer one the middle is left out, as
            LongBench does it. ``None`` for any number.
    """

    def __init__(self, tokenizer: Any, longest: int | None = None):
        self.tokenizer, self.longest = tokenizer, longest
        self.stops = set(tokenizer.eos_token_ids)
        chat = tokenizer.has_chat_template
        self.template = Template.of_chat(tokenizer) if chat else None

    def tokens(self, example: Example, limit: int | None) -> tuple[list[int], bool]:
        """A prompt, and whether it was cut.

        Args:
            example (Example): what is asked.
            limit (int): tokens of prompt and answer that a system can read.
        """
        most = self.longest
        before = after = ""
        if example.chat and self.template is not None:
            before, after = self.template.opening, self.template.closing
        if limit is not None:
            around = len(self.tokenizer.encode(before + after))
            room = max(2, limit - example.most - around)
            most = room if most is None else min(most, room)
        text = example.prompt
        ids = self.tokenizer.encode(text)
        if cut := most is not None and len(ids) > most:
            half = most // 2
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
    longest: int | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
    passages: int | None = None,
) -> list[dict[str, Any]]:
    """Asks every system for every example.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        examples (list): of :func:`load`.
        longest (int): see :class:`Prompts`.
        progress: called with the tokens of each prompt that was read.
        passages (int): how many are looked up for columns of their own; none if
            ``None``.

    Returns:
        list: JSON, an object for each response: the example, the system, what was
        said, its score and whether the prompt was cut.
    """
    prompts, compared = Prompts(tokenizer, longest), systems(model)
    named = {system.name: system for system in compared}
    answers = []
    with Shelves(tokenizer) as shelves:
        finder = Passages(model, tokenizer, passages, shelves) if passages else None
        for example, other in zip(examples, neighbours(examples), strict=True):
            lent, _ = prompts.tokens(other, None)
            asked = {name: (name, example) for name in named}
            if finder is not None:
                asked |= finder.examples(example)
            for name, (system, x) in asked.items():
                said, length, cut = _answer(model, prompts, named[system], x, lent)
                answers.append(
                    {
                        "subset": example.subset,
                        "system": name,
                        "tokens": length,
                        "cut": cut,
                        "expected": example.answers,
                        "said": said,
                        "score": example.score(said),
                    }
                )
                progress(length)
    return answers


def _answer(
    model: Model,
    prompts: Prompts,
    system: System,
    example: Example,
    lent: list[int],
) -> tuple[str, int, bool]:
    tokens, cut = prompts.tokens(example, system.limit)
    reader = Reader(system, model, lent)
    reader.read(tokens[:-1])
    said = reader.answer(tokens[-1:], example.most, prompts.stops)
    text = prompts.tokenizer.decode(said, skip_special_tokens=True)
    return text, len(tokens), cut


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
