"""The turns of a chat: answers as they come, in branches, undone as a whole."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from ..archive.lookup import Lookup
from ..chat_template import Template
from ..conversation import Conversation
from ..responses import Responses
from ..session import Session
from .archive_flags import print_sources
from .line_input import note


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Ctrl-C fills a list instead of raising, so that a step is finished; a second one
    raises."""
    pressed: list[bool] = []

    def press(*_: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Turns:
    """Branches of a conversation, in one of which the user is.

    Args:
        session (Session): of the first branch, with snapshots.
        template (Template): the text around the turns.
        options (dict): of ``Session.generate``, for every answer.
        step (int): of ``Session.read``, for documents and messages.
        allow_special_tokens (bool): read the names of control tokens in documents and
            messages as control tokens.
        lookup_options (dict): of ``Session.look_up``, for every message.
    """

    def __init__(
        self,
        session: Session,
        template: Template,
        options: dict[str, Any],
        step: int | None = None,
        allow_special_tokens: bool = False,
        lookup_options: dict[str, Any] | None = None,
    ):
        self.template, self.options, self.step = template, options, step
        self.allow_special_tokens = allow_special_tokens
        self.lookup_options = lookup_options or {}
        self.sessions = {"main": session}
        self.asked: dict[str, list[str | None]] = {"main": []}
        self.name = "main"
        self.in_a_document = False  # while one is read
        # Of the last answer: its end, and its passages with message and text.
        self.answer: Any = None
        self.lookup: tuple[Lookup, str, str] | None = None

    @property
    def session(self) -> Session:
        return self.sessions[self.name]

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.session, self.template, self.allow_special_tokens)

    @property
    def prompt(self) -> str:
        """The prompt of a line that the user types."""
        return ">> " if self.name == "main" else f"{self.name} >> "

    def say(self, text: str) -> None:
        """Answers a message of the user."""
        limit = self.options["max_tokens"]
        lookup = self.session.look_up(text, max_tokens=limit, **self.lookup_options)
        message = lookup.message(text) if lookup else text
        answer = ""
        with self.undoable(text), interruptible() as pressed:
            for _ in self.conversation.say(message, step=self.step):
                if pressed:
                    break
            if not pressed:
                responses = self.session.generate(**self.options)
                answer = self._print_answer(responses, pressed)
        self._print_rest(lookup, text, answer, bool(pressed))

    def say_aside(self, text: str) -> None:
        """Answers a message in a fork, while a document is read."""
        responses = self.session.ask(
            text,
            template=self.template,
            allow_special_tokens=self.allow_special_tokens,
            **self.options,
            **self.lookup_options,
        )
        with interruptible() as pressed:
            answer = self._print_answer(responses, pressed)
        self._print_rest(self.answer.lookup, text, answer, bool(pressed))

    def _print_answer(self, responses: Responses, pressed: list[bool]) -> str:
        answer = ""
        with closing(responses):
            for response in responses:
                self.answer = response
                answer += response.text
                print(response.text, end="", flush=True)
                if pressed:
                    break
        return answer

    def _print_rest(
        self, lookup: Lookup | None, text: str, answer: str, stopped: bool
    ) -> None:
        """Prints why an answer was cut off, if it was, or its sources."""
        print()
        self.lookup = (lookup, text, answer) if lookup else None
        if stopped:
            note("stopped" if self.in_a_document else "stopped; /retry answers again")
            return
        if self.answer.finish_reason == "length":
            tokens = self.answer.generation_tokens
            note(f"stopped after {tokens} tokens (--max-tokens)")
        print_sources(lookup, text, answer, self.session.archive)

    @contextmanager
    def undoable(self, text: str | None) -> Iterator[None]:
        """A turn that can be undone: a message, or ``None`` for a document. An error
        undoes it at once. A second Ctrl-C leaves the session with a whole state."""
        session, asked = self.session, self.asked[self.name]
        session.begin_turn()
        asked.append(text)
        try:
            yield
        except Exception:
            session.undo()
            asked.pop()
            raise
