"""The student's own answers, collected once: what the second stage trains on.

The teacher then says what it would have said in the student's place: distillation on
policy, offline (AllMem, section 3.3).
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from .documents import Collected, Document, Source
from .recipe import Recipe

FILE = "answers.jsonl"
ANSWER = 64  # tokens of an answer at most


def read_answers(file: Path) -> list[Document]:
    """What was collected so far. A line that was not finished is left out."""
    documents = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if line.endswith("\n"):
            tokens, first = json.loads(line)
            documents.append(Document(tokens, response=range(first, len(tokens))))
    return documents


def draw_prompt(recipe: Recipe, source: Source, number: int) -> list[int]:
    """A document and a question; it depends on the seed and the number alone."""
    draw = source.random = random.Random(f"{recipe.seed} stage 2 {number}")
    length = draw.choice(recipe.numbers("lengths"))
    document = source.natural(length, max(recipe.numbers("windows")))
    if document.response is None:  # nobody answers in it
        document = source.facts(length)
        return document.tokens[: document.answers[-1].start]
    return document.tokens[: document.response.start]


def collect(
    answer: Callable[[list[int], int], list[int]],
    recipe: Recipe,
    source: Source,
    folder: Path,
) -> None:
    """Asks the student, and writes its answers to ``answers.jsonl``: goes on where it
    was stopped.

    Args:
        answer: what the student says to a prompt, given the number of tokens at most.
        recipe (Recipe): how prompts are drawn, and how many.
        source (Source): of the prompts.
        folder (Path): of the run.
    """
    file = folder / FILE
    known = read_answers(file)
    lines = [json.dumps([d.tokens, d.response.start]) for d in known if d.response]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    os.replace(temporary, file)
    with file.open("a") as out:
        for number in range(len(known), recipe.stage2):
            prompt = draw_prompt(recipe, source, number)
            said = answer(prompt, ANSWER)
            out.write(json.dumps([prompt + said, len(prompt)]) + "\n")
            out.flush()


def collected(recipe: Recipe, source: Source, folder: Path) -> Source:
    """A source of what was collected."""
    return Collected(read_answers(folder / FILE), source.tokenizer, recipe.seed)
