"""Where documents come from: text files, mlx-lm's data sets, the student's answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import AllMemError, reason
from .documents import Document, Source

TRIES = 100  # draws until a text is long enough
SUFFIXES = ("*.txt", "*.npy")
PART = 512  # tokens that one text has in a passage of several, at least


def too_little(place: Path, length: int) -> AllMemError:
    return AllMemError(
        f"{place}: too little text for {length} tokens; add text, or train on shorter "
        "documents with --lengths"
    )


class Texts(Source):
    """Draws from text files. Each folder of them is a kind of text, and all kinds are
    equally frequent.

    Args:
        files (Sequence[Path]): UTF-8, or token ids as NumPy saves them (``.npy``).
    """

    def __init__(self, files: Sequence[Path], tokenizer: Any, seed: int):
        super().__init__(tokenizer, seed)
        self.files: dict[str, list[Path]] = {}
        for file in files:
            self.files.setdefault(file.parent.name, []).append(file)

    @property
    def kinds(self) -> list[str]:
        return list(self.files)

    def passage(self, length: int, kind: str = "") -> list[int]:
        """A part of a random file, from the beginning of a paragraph; where the file
        ends, it goes on with another of its kind."""
        files = self.files[kind or self.random.choice(self.kinds)]
        tokens: list[int] = []
        for _ in range(TRIES):
            file = self.random.choice(files)
            part = self._part(file, length - len(tokens))
            if len(part) >= min(PART, length - len(tokens)):
                tokens += part
            if len(tokens) == length:
                return tokens
        raise too_little(file.parent, length)

    def _part(self, file: Path, length: int) -> list[int]:
        """At most so many tokens of a file."""
        if file.suffix == ".npy":
            ids = np.load(file, mmap_mode="r")
            start = self.random.randrange(max(1, len(ids) - length))
            return ids[start : start + length].tolist()
        characters = 8 * length  # of which a token has 4 to 5
        size = file.stat().st_size
        start = self.random.randrange(max(1, size - characters))
        with file.open("rb") as opened:
            opened.seek(start)
            text = opened.read(characters).decode("utf-8", "ignore")
        return self.tokens(text[text.find("\n\n") + 2 :])[:length]


class Packed(Source):
    """Draws from short documents of which parts are scored, none of them empty, one
    after the other until a document has its length."""

    place: Path

    def draw(self) -> Document:
        """One of the short documents."""
        raise NotImplementedError

    def passage(self, length: int, kind: str = "") -> list[int]:
        """Short documents one after another, from the middle of the first."""
        tokens: list[int] = []
        while len(tokens) < length:
            example = self.draw().tokens
            start = 0 if tokens else self.random.randrange(len(example))
            tokens += example[start:]
        return tokens[:length]

    def natural(self, length: int) -> Document:
        tokens: list[int] = []
        scored: list[range] = []
        while len(tokens) < length:
            start = len(tokens)
            example = self.draw()
            tokens += example.tokens
            parts = example.scored or [range(len(example.tokens))]
            scored += [range(start + x.start, start + x.stop) for x in parts]
        scored = [x for x in scored if x.start < length]
        document = Document(tokens[:length], scored=scored)
        if not document.whole().targets:
            raise AllMemError(
                f"{self.place}: nothing to score in {length} tokens; train on longer "
                "documents with --lengths"
            )
        return document


class Examples(Packed):
    """Draws from a JSONL file as mlx-lm trains on: ``text``, ``messages``, or
    ``prompt`` and ``completion``. Of a conversation only the last response is scored.

    Args:
        file (Path): the file.

    Raises:
        AllMemError: if it is another kind of file.
    """

    def __init__(self, file: Path, tokenizer: Any, seed: int):
        from mlx_lm.tuner.datasets import create_dataset

        super().__init__(tokenizer, seed)
        self.place = file
        try:
            lines = file.read_text("utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            text = "text" in rows[0] and "messages" not in rows[0]
            options = SimpleNamespace(mask_prompt=not text)
            self.dataset = create_dataset(rows, tokenizer, options)
            self._example(0)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise AllMemError(
                f"{file} is not a data set of mlx-lm: {reason(error)}"
            ) from None

    def _example(self, i: int) -> Document:
        try:
            tokens, offset = self.dataset.process(self.dataset[i])
        except (TypeError, LookupError, ValueError) as error:
            raise AllMemError(
                f"{self.place}: example {i + 1} is not like the first: {reason(error)}"
            ) from None
        if not tokens:
            raise AllMemError(f"{self.place}: example {i + 1} is empty")
        return Document(list(tokens), scored=[range(offset, len(tokens))])

    def draw(self) -> Document:
        return self._example(self.random.randrange(len(self.dataset)))


class Collected(Packed):
    """Draws from the student's answers.

    Args:
        documents (Sequence[Document]): of ``stage2.py``.
        file (Path): where they are kept.
    """

    def __init__(
        self, documents: Sequence[Document], file: Path, tokenizer: Any, seed: int
    ):
        super().__init__(tokenizer, seed)
        self.documents, self.place = list(documents), file

    def draw(self) -> Document:
        return self.random.choice(self.documents)


def _prefixes(setting: str) -> tuple[str, ...]:
    """Beginnings of names, separated by commas."""
    return tuple(x for x in setting.split(",") if x)


def open_sources(
    data: str, held_out: str, validation: str, tokenizer: Any, seed: int
) -> tuple[Source, Source]:
    """The documents to train on, and those to judge by.

    Args:
        data (str): folder with ``train.jsonl`` and ``valid.jsonl``, or text files, or
            folders of text files.
        held_out, validation (str): see :class:`Recipe`.
        tokenizer: the model's.
        seed (int): of the random draws.

    Raises:
        AllMemError: if there are none.
    """
    folder = Path(data)
    if (folder / "train.jsonl").is_file():
        train, valid = folder / "train.jsonl", folder / "valid.jsonl"
        return Examples(train, tokenizer, seed), Examples(valid, tokenizer, seed + 1)
    judged, held_back = _prefixes(validation), _prefixes(validation + "," + held_out)
    places = (folder, *filter(Path.is_dir, folder.glob("*")))
    files = sorted(x for place in places for kind in SUFFIXES for x in place.glob(kind))
    training = [f for f in files if not f.name.startswith(held_back)]
    validating = [f for f in files if f.name.startswith(judged)]
    for purpose, texts in (("train", training), ("validation", validating)):
        if not texts:
            raise AllMemError(
                f"{data}: no text file (*.txt) for {purpose}, and no train.jsonl"
            )
    return Texts(training, tokenizer, seed), Texts(validating, tokenizer, seed + 1)
