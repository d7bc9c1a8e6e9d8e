"""Documents to train and judge on: books, and facts whose use lies far behind.

Three kinds, each a sequence of tokens of a given length:

- ``book``: a piece of a text file, natural text.
- ``repeat``: a passage, other text, the passage again: after a few words of it every
  further word can be recalled.
- ``facts``: sentences planted in a book, and questions about them at its end.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem_mlx.errors import AllMemError

TRIES = 100  # of finding a file that is long enough
NAMES = (
    "Abel Ada Adam Agnes Albert Alma Amos Anna Arthur Astrid Barnaby Beatrix Bella "
    "Bernard Bruno Carmen Cecil Clara Conrad Cora Cyrus Daphne Dora Edgar Edith "
    "Elias Ella Ernest Esther Ezra Felix Fiona Flora Frances George Gilbert Gloria "
    "Greta Gustav Hannah Harold Hector Helen Henry Hilda Hugo Ida Igor Irene Isaac "
    "Ivan Jasper Joan Joseph Judith Karl Laura Leo Lewis Lola Lucy Luther Mabel "
    "Magnus Marcus Martha Max Mildred Miriam Nadia Nathan Nina Nora Oliver Olga "
    "Oscar Otto Paul Pearl Peter Phoebe Quentin Rachel Ralph Rosa Rufus Ruth Samuel "
    "Sarah Silas Simon Sophie Stella Theodore Thomas Ursula Vera Victor Viola "
    "Walter Wanda Wilfred Yvonne Zelda"
).split()
WORDS = (
    "anchor apple arrow basket beacon bell bottle bridge bronze butter button cabin "
    "camel candle canoe carpet castle cedar chalk cherry clock cloud copper coral "
    "cotton crown crystal desert diamond dragon drum eagle ember falcon feather "
    "fiddle flame forest fountain garden ginger glass glove gold granite hammer "
    "harbor harp honey horn iron island ivory jacket jewel kettle ladder lantern "
    "leather lemon lily lion marble meadow mirror moon needle oak ocean olive "
    "orange orchard owl paper pearl pepper piano pigeon pine plum rabbit raven "
    "ribbon river rocket rose saddle salmon sand scarf shadow silk silver spider "
    "spoon star stone storm sugar table thunder tiger tower tulip turtle velvet "
    "violet walnut water whale willow window wolf wool"
).split()
# What is planted, and how it is asked for: the answer follows the question.
FACTS = (
    (
        "The secret code of {name} is {digits}.",
        "The secret code of {name} is",
        "{digits}",
    ),
    ("{name} hid the {word} under the bed.", "Under the bed {name} hid the", "{word}"),
    ("The password of {name} is {word}.", "The password of {name} is", "{word}"),
    ("{name} lives at number {digits}.", "{name} lives at number", "{digits}"),
)
HELD_OUT_FACTS = (
    (
        "The magic number of {name} is {digits}.",
        "The magic number of {name} is",
        "{digits}",
    ),
    (
        "The favourite thing of {name} is the {word}.",
        "The favourite thing of {name} is the",
        "{word}",
    ),
)


@dataclass(frozen=True)
class Document:
    """Tokens, and which of them answer a question.

    Args:
        tokens (list): token ids.
        answers (list): for each question, the positions of its answer's tokens.
    """

    tokens: list[int]
    answers: list[range]


class Texts:
    """Draws documents from text files.

    Args:
        files (Sequence[Path]): books, UTF-8.
        tokenizer (PreTrainedTokenizerBase): the model's.
        seed (int): of everything drawn.
    """

    def __init__(self, files: Sequence[Path], tokenizer: Any, seed: int):
        self.files, self.tokenizer = list(files), tokenizer
        self.random = random.Random(seed)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def passage(self, length: int) -> list[int]:
        """A piece of a random book, from the beginning of a paragraph."""
        for _ in range(TRIES):
            path = self.random.choice(self.files)
            characters = 8 * length  # of which a token has 4 to 5
            size = path.stat().st_size
            start = self.random.randrange(max(1, size - characters))
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(characters).decode("utf-8", "ignore")
            tokens = self._tokens(text[text.find("\n\n") + 2 :])
            if len(tokens) >= length:
                return tokens[:length]
        raise AllMemError(f"{path.parent}: too little text for {length} tokens")

    def book(self, length: int) -> Document:
        return Document(self.passage(length), [])

    def repeat(self, length: int) -> Document:
        """A passage, other text, the passage again, ..."""
        size = self.random.randrange(length // 8, length * 2 // 5)
        passage, between = self.passage(size), self.passage(length)
        gap = self.random.randrange(
            length // 8, max(length // 8 + 1, length - 2 * size + 1)
        )
        tokens = passage + between[:gap] + passage + between[gap:]
        return Document(tokens[:length], [])

    def facts(
        self, length: int, facts: tuple = FACTS, count: int | None = None
    ) -> Document:
        """Facts in the first part of a book, questions at its end."""
        choose = self.random
        count = count or choose.randrange(4, max(5, min(24, length // 96)))
        names = choose.sample(NAMES, count)
        told, asked = [], []
        for name in names:
            statement, question, answer = choose.choice(facts)
            values = {
                "name": name,
                "digits": "".join(choose.choices("0123456789", k=4)),
                "word": choose.choice(WORDS),
            }
            told.append(self._tokens(" " + statement.format(**values)))
            question = self._tokens("\n" + question.format(**values))
            asked.append((question, self._tokens(" " + answer.format(**values))))
        choose.shuffle(asked)
        dot = self._tokens(".")
        tail = sum(len(q) + len(a) + len(dot) for q, a in asked)
        body = self.passage(length - tail - sum(map(len, told)))
        # Facts lie in the first half, so that questions are far away.
        places = sorted(choose.randrange(len(body) // 2) for _ in told)
        tokens, last = [], 0
        for place, fact in zip(places, told, strict=True):
            tokens += body[last:place] + fact
            last = place
        tokens += body[last:]
        answers = []
        for question, answer in asked:
            tokens += question
            answers.append(range(len(tokens), len(tokens) + len(answer)))
            tokens += answer + dot
        return Document(tokens, answers)
