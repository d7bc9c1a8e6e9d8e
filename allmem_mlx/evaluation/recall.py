"""Recall by generation: documents are read, then asked about in the chat template."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Answer:
    """What one system said to one question.

    Args:
        task (str): the task.
        kind (str): what was to be recalled.
        distance (int): tokens of the document since.
        depth (float): of a passkey.
        system (str): who answered.
        expected (str): the right answer.
        said (str): its answer; ``None`` if the document was too long for it.
        right (bool): whether that is right.
    """

    task: str
    kind: str
    distance: int
    depth: float | None
    system: str
    expected: str
    said: str | None
    right: bool


def make_tasks(
    name: str,
    tokenizer: Any,
    distances: Sequence[int],
    samples: int,
    seed: int,
    books: Sequence[Text] = (),
) -> list[list[Task]]:
    """Groups of tasks that differ in what was drawn only. Each group has one more than
    ``samples``: the memory of its document is lent, and it is not asked about.

    Args:
        name (str): one of :data:`TASKS`.
        tokenizer: of the model.
        distances (list): in tokens.
        samples (int): tasks of each kind.
        seed (int): of what is drawn.
        books (list): where ``facts`` are planted.

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
        # Neighbours have different names: one lends its memory to the other.
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


class Asking:
    """How documents and questions are put to a model, as by the command line.

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
) -> list[Answer]:
    """Asks every system about every document but the last of each group.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        groups (list): of :func:`make_tasks`.
        progress: called with the tokens of each document that was read.
    """
    asking, compared = Asking(tokenizer), systems(model)
    return [
        answer
        for group in groups
        for task, other in zip(group, group[1:], strict=False)
        for system in compared
        for answer in _answers(model, asking, system, task, other, progress)
    ]


def _answers(
    model: Model,
    asking: Asking,
    system: System,
    task: Task,
    other: Task,
    progress: Callable[[int], Any],
) -> list[Answer]:
    document = asking.document(task.document)
    prompts = [asking.question(question.text) for question in task.questions]
    longest = len(document) + max(map(len, prompts)) + ANSWER
    fits = system.limit is None or longest <= system.limit
    if fits:
        reader = Reader(system, model, asking.document(other.document))
        reader.read(document)
    answers = []
    for question, prompt in zip(task.questions, prompts, strict=True):
        said = None
        if fits:
            said = asking.text(reader.answer(prompt, ANSWER, asking.stops))
        answers.append(
            Answer(
                task=task.name,
                kind=question.kind,
                distance=task.distance,
                depth=task.depth,
                system=system.name,
                expected=question.answer,
                said=said,
                right=said is not None and question.answered(said),
            )
        )
    progress(len(document))
    return answers


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts of right answers by task, kind, distance and depth, and every answer.

    Returns:
        dict: JSON; see ``docs/evaluation.md``.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for answer in answers:
        key = (answer.task, answer.kind, answer.distance, answer.depth)
        names = ("task", "kind", "distance", "depth")
        row = rows.setdefault(
            key, {**dict(zip(names, key, strict=True)), "asked": {}, "right": {}}
        )
        asked = answer.said is not None
        for name, count in (("asked", asked), ("right", answer.right)):
            row[name][answer.system] = row[name].get(answer.system, 0) + count
    return {
        "rows": list(rows.values()),
        "answers": [asdict(answer) for answer in answers],
    }
