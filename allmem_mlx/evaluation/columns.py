"""The columns of recall with passages: the systems that answer, each with what it has
read, and the answers that are saved for a run that is resumed."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import state as states
from ..conversation import Conversation
from ..errors import AllMemError
from ..model import Model
from ..session import Session
from ..variants import base_model, window_model
from .bars import bar
from .lookups import ANSWER, DRAWN, ELSEWHERE, FOUND, RIGHT
from .recall import ChatPrompts
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

SAVE_EVERY = 10_000  # tokens between two saves of a state
PIECE = 1000  # tokens that are handed to a session at once


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Args:
        name (str): one of the names of :mod:`systems`.
        system (str): the system that answers.
        reads (bool): ``True`` if it has read the document.
        passages (str): the source of the passages before the question.
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


class SavedAnswers:
    """States and answers in a folder, for a run that is resumed.

    Args:
        folder (Path): the folder; ``None`` to save nothing.

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
                if lines[-1]:  # the run was stopped in the middle of a line
                    file.write("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise AllMemError(
                f"answers cannot be saved in {str(folder)!r} "
                f"({getattr(error, 'strerror', error)}); name another folder"
            ) from None
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                answer = json.loads(line)
                self.answers[answer["key"]] = answer["said"]

    def state(self, digest: str) -> Path | None:
        """The file of the state that has read tokens of this digest."""
        return self.folder and self.folder / f"{digest}.allmem"

    def add(self, key: str, answer: str, **more: str) -> None:
        """Saves an answer, and what else its line should hold."""
        self.answers[key] = answer
        if self.folder is not None:
            line = json.dumps({"key": key, "said": answer, **more}, ensure_ascii=False)
            try:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise AllMemError(
                    f"{str(self._file)!r} cannot be written ({error.strerror})"
                ) from None


class Answerer:
    """The systems, each of which reads the document when it is first asked.

    Args:
        model (Model): a hybrid.
        tokenizer: its tokenizer.
        document (list): tokens of the document.
        saved (SavedAnswers): states and answers.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        document: Sequence[int],
        saved: SavedAnswers,
    ):
        self.model, self.tokenizer, self.saved = model, tokenizer, saved
        self.prompts = ChatPrompts(tokenizer)
        self.document = self.prompts.document(document)
        self.digest = states.digest(self.document)
        self.limit = model.base_config.get("max_position_embeddings")
        self._bare = document
        self._model = f"{states.fingerprint(model)} {asdict(model.allmem)}"
        self._sessions: dict[bool, Session] = {}
        self._readers: dict[str, tuple[str, Reader]] = {}

    def tail(self, tokens: int, messages: Sequence[str]) -> list[int] | None:
        """The last tokens of the document, for full attention; ``None`` if they are
        too long for it with one of the messages."""
        start = max(0, len(self._bare) - tokens)
        tail = self.prompts.document(self._bare[start:])
        longest = max(len(self.prompts.question(message)) for message in messages)
        fits = self.limit is None or len(tail) + longest + ANSWER <= self.limit
        return tail if fits else None

    def answer(
        self, column: Column, message: str, tail: Sequence[int] | None = None
    ) -> str | None:
        """The answer of a column to a message.

        Args:
            column (Column): the column.
            message (str): of :meth:`Lookup.message`.
            tail (list): of :meth:`tail`, for full attention.

        Returns:
            str: ``None`` if the column is full attention without a tail.
        """
        read = ""
        if column.reads and column.system == FULL:
            if tail is None:
                return None
            read = states.digest(tail)
        elif column.reads:
            read = self.digest
        key = json.dumps([self._model, column.system, read, message, ANSWER])
        key = hashlib.sha256(key.encode()).hexdigest()
        if key not in self.saved.answers:
            if column.system == ALLMEM:
                answer = self._ask_session(column.reads, message)
            else:
                reader = self._reader(column.system, read, tail or [])
                question = self.prompts.question(message)
                ids = reader.answer(question, ANSWER, self.prompts.stops)
                answer = self.prompts.text(ids)
            self.saved.add(key, answer, column=column.name, message=message)
        return self.saved.answers[key]

    def _ask_session(self, reads: bool, message: str) -> str:
        if reads not in self._sessions:
            session = self._read() if reads else Session(self.model, self.tokenizer)
            self._sessions[reads] = session
        talk = Conversation(self._sessions[reads].fork(), self.prompts.template)
        return "".join(x.text for x in talk.ask(message, max_tokens=ANSWER))

    def _read(self) -> Session:
        """AllMem after the document, which is read from where a saved state ends."""
        path = self.saved.state(self.digest)
        if path is not None and path.exists():
            state = states.load(path, self.model)
        else:
            state = states.new(self.model)
        session = Session(self.model, self.tokenizer, state)
        saved = state.read
        document = range(0, len(self.document), PIECE)
        pieces = (self.document[i : i + PIECE] for i in document)
        with bar(len(self.document), "tokens of AllMem") as done:
            done.update(saved)
            for _ in session.read(states.unread(pieces, state)):
                done.update(session.state.read - done.n)
                if path is not None and session.state.read - saved >= SAVE_EVERY:
                    states.save(session.state, path, self.model)
                    saved = session.state.read
        if path is not None and session.state.read > saved:
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
        with bar(unit=f"tokens of {name}"):
            if name == FULL:
                reader.read(tail)
            else:
                reader.read_end(self.document)
        self._readers[name] = read, reader
        return reader
