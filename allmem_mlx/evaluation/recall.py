"""Recall by generation: documents are read, then asked about in the chat template."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from ..chat_template import PARAGRAPH, Template
from ..documents.plain_text import encode
from ..errors import AllMemError
from ..model import Model
from .recall_tasks import DEPTHS, NAMES, PLACES, Task, encoder, facts, mqar, passkey
from .systems import Reader, System, systems
from .texts import Text

TASKS = ("passkey", "mqar", "facts")
ANSWER = 24  # tokens of an answer at most


def make_tasks(
    name: str,
    tokenizer: Any,
    distances: Sequence[int],
    samples: int,
    seed: int,
    books: Sequence[Text] = (),
) -> list[list[Task]]:
    """Groups of tasks that differ in their random facts only. Each has one more than
    ``samples``, whose memory is lent and which is not asked about.

    Args:
        name (str): one of :data:`TASKS`.
        tokenizer: of the model.
        distances (list): in tokens.
        samples (int): tasks of each kind.
        seed (int): random seed.
        books (list): texts in which ``facts`` are planted.

    Raises:
        AllMemError: if a book is too short.
    """
    encode = encoder(tokenizer)
    names, places = (
        [word for word in words if not any(word in book.text for book in books)]
        for words in (NAMES, PLACES)
    )
    if not (names and places):
        raise AllMemError("the texts have every name or place that could be planted")

    def draw(distance: int, depth: float | None, sample: int) -> Task:
        rng = random.Random(f"{seed} {name} {distance} {depth} {sample}")
        if name == "mqar":
            return mqar(encode, distance, rng)
        if depth is not None:
            return passkey(encode, distance, depth, rng)
        # One lends its memory to the one before, so that their names must differ.
        return facts(
            encode,
            distance,
            books[sample % len(books)].tokens,
            names[(seed + sample) % len(names)],
            places[(seed + sample) % len(places)],
            rng,
        )

    depths = DEPTHS if name == "passkey" else (None,)
    return [
        [draw(distance, depth, sample) for sample in range(samples + 1)]
        for distance in distances
        for depth in depths
    ]


class ChatPrompts:
    """Documents and questions as token ids, as in the chat of the command line.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.template = tokenizer, Template.of(tokenizer)
        self.encode = encoder(tokenizer)
        self.stops = set(tokenizer.eos_token_ids)

    def document(self, tokens: Sequence[int]) -> list[int]:
        """A document at the start of the user's message."""
        start = self.template.start + self.encode(self.template.opening)
        return [*start, *tokens]

    def question(self, text: str) -> list[int]:
        """The rest of the message."""
        parts = [(PARAGRAPH, False), (text, True), (self.template.closing, False)]
        return encode(self.tokenizer, parts)

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


def recall(
    model: Model,
    tokenizer: Any,
    groups: Sequence[Sequence[Task]],
    progress: Callable[[int], Any] = lambda tokens: None,
) -> list[dict[str, Any]]:
    """Asks every system about every document but the last of each group.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        groups (list): of :func:`make_tasks`.
        progress: called with the number of tokens of each document.

    Returns:
        list: JSON, an object for each answer; ``said`` is ``None`` where the document
        is too long for the system.
    """
    prompts, compared = ChatPrompts(tokenizer), systems(model)
    answers = []
    for group in groups:
        for task, other in zip(group, group[1:], strict=False):
            lent = prompts.document(other.document)
            for system in compared:
                responses = _answers(model, prompts, system, task, lent)
                progress(len(task.document))
                for question, response in zip(task.questions, responses, strict=True):
                    answers.append(
                        {
                            "task": task.name,
                            "kind": question.kind,
                            "distance": task.distance,
                            "depth": task.depth,
                            "system": system.name,
                            "expected": question.answer,
                            "said": response,
                            "right": response is not None
                            and question.answered(response),
                        }
                    )
    return answers


def _answers(
    model: Model, prompts: ChatPrompts, system: System, task: Task, lent: list[int]
) -> list[str | None]:
    document = prompts.document(task.document)
    questions = [prompts.question(question.text) for question in task.questions]
    longest = len(document) + max(map(len, questions)) + ANSWER
    if system.limit is not None and longest > system.limit:
        return [None] * len(questions)
    reader = Reader(system, model, lent)
    reader.read(document)
    return [
        prompts.text(reader.answer(question, ANSWER, prompts.stops))
        for question in questions
    ]


def summary(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of right answers by task, kind, distance and depth, and every answer.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for answer in answers:
        key = {x: answer[x] for x in ("task", "kind", "distance", "depth")}
        row = rows.setdefault(tuple(key.values()), {**key, "asked": {}, "right": {}})
        asked = answer["said"] is not None
        for name, count in (("asked", asked), ("right", answer["right"])):
            row[name][answer["system"]] = row[name].get(answer["system"], 0) + count
    return {"rows": list(rows.values()), "answers": list(answers)}
