"""The second stage: training on the student's own answers, collected once.

The teacher scores what the student said: offline on-policy distillation (AllMem,
section 3.3).
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from ..files import replacing
from .documents import Document, Source
from .recipe import Recipe
from .sources import Collected

FILE = "answers.jsonl"
ANSWER = 64  # maximum tokens of an answer


def read_answers(file: Path) -> list[Document]:
    """The answers collected so far, without an unfinished line."""
    documents = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if line.endswith("\n"):
            tokens, first = json.loads(line)
            documents.append(Document(tokens, scored=[range(first, len(tokens))]))
    return documents


def draw_prompt(recipe: Recipe, source: Source, number: int) -> list[int]:
    """Draws a document and a question; they depend on the seed and the number alone."""
    draw = source.random = random.Random(f"{recipe.seed} stage 2 {number}")
    length = draw.choice(recipe.numbers("lengths"))
    document = source.natural(length)
    if not document.scored:  # it is no conversation
        document = source.facts(length, length)
        return document.tokens[: document.answers[-1].at.start]
    return document.tokens[: document.scored[-1].start]


def collect(
    answer: Callable[[list[int], int], list[int]],
    recipe: Recipe,
    source: Source,
    folder: Path,
) -> None:
    """Collects answers of the student in ``answers.jsonl``, after those that are there.

    Args:
        answer (Callable): answers a prompt with at most a number of tokens.
        recipe (Recipe): how many prompts, and how they are drawn.
        source (Source): of the prompts.
        folder (Path): of the run.
    """
    file = folder / FILE
    known = read_answers(file)
    lines = [json.dumps([d.tokens, d.scored[0].start]) for d in known if d.scored]
    with replacing(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))
    with file.open("a") as out:
        for number in range(len(known), recipe.stage2):
            prompt = draw_prompt(recipe, source, number)
            tokens = prompt + answer(prompt, ANSWER)
            out.write(json.dumps([tokens, len(prompt)]) + "\n")
            out.flush()


def collected(recipe: Recipe, source: Source, folder: Path) -> Source:
    """A source of the collected answers."""
    file = folder / FILE
    return Collected(read_answers(file), file, source.tokenizer, recipe.seed)
