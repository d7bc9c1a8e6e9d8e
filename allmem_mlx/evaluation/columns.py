"""Who answers the questions about a planted book: what each column has read, and what
is kept of it for a run that is stopped and goes on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import state as states
from ..conversation import Conversation
from ..errors import AllMemError
from ..model import Model
from ..session import Session
from ..variants import base_model, window_model
from .bars import Bar, no_bar
from .lookups import ANSWER, DRAWN, ELSEWHERE, FOUND, RIGHT
from .recall import Asking
from .systems import (
    ALLMEM,
    ALLMEM_PASSAGES,
    CLOSED,
    FULL,
    FULL_PASSAGES,
    ORACLE,
    OTHERS,
    PASSAGES_ONLY,
    RANDOM,
    WINDOW,
    WINDOW_PASSAGES,
    Reader,
    System,
)

SAVE = 10_000  # tokens between two times that a state is saved
PIECE = 1000  # tokens that wait to be read at most, in a file


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Args:
        name (str): one of the names of :mod:`systems`.
        system (str): who answers.
        reads (bool): whether it has read the document.
        passages (str): where the passages come from that are put before the question.
    """

    name: str
    system: str
    reads: bool
    passages: str | None


COLUMNS = (
    Column(ALLMEM, ALLMEM, True, None),
    Column(ALLMEM_PASSAGES, ALLMEM, True, FOUND),
    Column(WINDOW_PASSAGES, WINDOW, True, FOUND),
    Column(FULL, FULL, True, None),
    Column(FULL_PASSAGES, FULL, True, FOUND),
    Column(PASSAGES_ONLY, ALLMEM, False, FOUND),
    Column(ORACLE, ALLMEM, False, RIGHT),
    Column(RANDOM, ALLMEM, False, DRAWN),
    Column(OTHERS, ALLMEM, False, ELSEWHERE),
    Column(CLOSED, ALLMEM, False, None),
)


class Kept:
    """States and answers of a folder, for a run that goes on where one was stopped.

    Args:
        folder (Path): where they are kept; ``None`` to keep nothing.

    Raises:
        AllMemError: if it cannot be written to.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.answers: dict[str, str] = {}
        if folder is None:
            return
        self._file = folder / "answers.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("a+", encoding="utf-8") as file:
                file.seek(0)
                lines = file.read().split("\n")
                if lines[-1]:  # the run was stopped while it was written
                    file.write("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise AllMemError(
                f"answers cannot be kept in {str(folder)!r} "
                f"({getattr(error, 'strerror', error)}); name another folder"
            ) from None
        for line in lines:
            try:
                answer = json.loads(line)
                self.answers[answer["key"]] = answer["said"]
            except (ValueError, KeyError, TypeError):
                continue

    def state(self, digest: str) -> Path | None:
        """Where the state is that has read tokens of this digest."""
        return self.folder and self.folder / f"{digest}.allmem"

    def keep(self, key: str, said: str, **more: str) -> None:
        self.answers[key] = said
        if self.folder is not None:
            line = json.dumps({"key": key, "said": said, **more}, ensure_ascii=False)
            try:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise AllMemError(
                    f"{str(self._file)!r} cannot be written ({error.strerror})"
                ) from None


class Answering:
    """The systems, each with what it has read; it reads when it is first asked.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        document (list): tokens of the document.
        kept (Kept): states and answers.
        bar (callable): shows how far reading is.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        document: Sequence[int],
        kept: Kept,
        bar: Bar = no_bar,
    ):
        self.model, self.tokenizer, self.kept, self.bar = model, tokenizer, kept, bar
        self.asking = Asking(tokenizer)
        self.document = self.asking.document(document)
        self.digest = states.digest(self.document)
        self.limit = model.base_config.get("max_position_embeddings")
        self._bare = document
        self._model = f"{states.fingerprint(model)} {asdict(model.allmem)}"
        self._sessions: dict[bool, Session] = {}
        self._readers: dict[str, tuple[str, Reader]] = {}

    def tail(self, tokens: int, messages: Sequence[str]) -> list[int] | None:
        """The end of the document that full attention reads: all of it, or so many
        tokens; ``None`` if that is too long with one of the messages."""
        start = max(0, len(self._bare) - tokens)
        tail = self.asking.document(self._bare[start:])
        longest = max(len(self.asking.question(message)) for message in messages)
        fits = self.limit is None or len(tail) + longest + ANSWER <= self.limit
        return tail if fits else None

    def say(
        self, column: Column, message: str, tail: Sequence[int] | None = None
    ) -> str | None:
        """What a column answers to a message.

        Args:
            column (Column): who answers.
            message (str): of :meth:`Lookup.message`.
            tail (list): of :meth:`tail`, for full attention.

        Returns:
            str: ``None`` if it cannot have read what it should.
        """
        read = ""
        if column.reads:
            if column.system == FULL:
                if tail is None:
                    return None
                read = states.digest(tail)
            else:
                read = self.digest
        key = json.dumps([self._model, column.system, read, message, ANSWER])
        key = hashlib.sha256(key.encode()).hexdigest()
        if key not in self.kept.answers:
            if column.system == ALLMEM:
                said = self._say(column.reads, message)
            else:
                reader = self._reader(column.system, read, tail or [])
                prompt = self.asking.question(message)
                ids = reader.answer(prompt, ANSWER, self.asking.stops)
                said = self.asking.text(ids)
            self.kept.keep(key, said, column=column.name, message=message)
        return self.kept.answers[key]

    def _say(self, reads: bool, message: str) -> str:
        if reads not in self._sessions:
            session = self._read() if reads else Session(self.model, self.tokenizer)
            self._sessions[reads] = session
        talk = Conversation(self._sessions[reads].fork(), self.asking.template)
        return "".join(x.text for x in talk.ask(message, max_tokens=ANSWER))

    def _read(self) -> Session:
        """AllMem after the document, which is read from where a file ends."""
        path = self.kept.state(self.digest)
        if path is not None and path.exists():
            state = states.load(path, self.model)
        else:
            state = states.new(self.model)
        session = Session(self.model, self.tokenizer, state)
        saved = before = state.read
        pieces = (
            self.document[i : i + PIECE] for i in range(0, len(self.document), PIECE)
        )
        with self.bar(len(self.document), "tokens of AllMem") as done:
            done(before)
            for _ in session.read(states.unread(pieces, state)):
                done(session.state.read - before)
                before = session.state.read
                if path is not None and before - saved >= SAVE:
                    states.save(session.state, path, self.model)
                    saved = before
        if path is not None and before > saved:
            states.save(session.state, path, self.model)
        session.state.notes["turn"] = "user"  # a document begins the user's message
        return session

    def _reader(self, name: str, read: str, tail: Sequence[int]) -> Reader:
        """Window + sinks after the document, or full attention after its end."""
        if name in self._readers and self._readers[name][0] == read:
            return self._readers[name][1]
        if name == FULL:
            system = System(FULL, base_model(self.model), limit=self.limit)
        else:
            window = self.model.allmem.window
            system = System(WINDOW, window_model(self.model, window))
        reader = Reader(system, self.model)
        with self.bar(None, f"tokens of {name}"):
            if name == FULL:
                reader.read(tail)
            else:
                reader.read_end(self.document)
        self._readers[name] = read, reader
        return reader
