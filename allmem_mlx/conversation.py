"""A conversation as one growing sequence of tokens.

A turn is appended to what a session has read, and a document is read as a part of a
user's message.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from .chat_template import PARAGRAPH, Template
from .documents.plain_text import Part, encode
from .errors import AllMemError
from .state import State
from .streaming import GenerationResponse


class Reader(Protocol):
    """The part of a :class:`~allmem_mlx.session.Session` that a conversation needs."""

    state: State
    tokenizer: Any

    def read(
        self, pieces: Iterable[Sequence[int]], step: int | None = None
    ) -> Iterator[int]: ...

    def generate(self, **options: Any) -> Generator[GenerationResponse, None, None]: ...


class Conversation:
    """Turns of a user and a model, in what a session reads.

    Args:
        session (Session): where it takes place.
        template (Template): what stands around the turns.
        allow_special_tokens (bool): read the names of control tokens in messages and
            the system prompt as control tokens, rather than as plain text.
    """

    def __init__(
        self, session: Reader, template: Template, allow_special_tokens: bool = False
    ):
        self.session, self.template = session, template
        self.allow_special_tokens = allow_special_tokens

    def read(
        self, pieces: Iterable[list[int]], key: str | None = None, **options: Any
    ) -> Iterator[int]:
        """Reads a document as a part of the user's message; see ``Session.read``.

        Args:
            pieces: its tokens.
            key (str): what an archive calls it.
            options: of ``Session.read``.
        """
        before = self._encode(self._before())
        state = self._note("user")
        if key is not None:
            state.open_document(key, state.tokens + len(before))
        return self.session.read(chain([before], pieces), **options)

    def ask(
        self, text: str, **options: Any
    ) -> Generator[GenerationResponse, None, None]:
        """Generates a response to the user's message; see ``Session.generate``."""
        for _ in self.say(text):
            pass
        return self.session.generate(**options)

    def say(self, text: str, **options: Any) -> Iterator[int]:
        """Reads the user's message, up to the response; see ``Session.read``."""
        around = (self.template.closing, False)
        prompt = self._encode([*self._before(), (text, True), around])
        self._note("assistant")
        return self.session.read([prompt], **options)

    def _before(self) -> list[Part]:
        """What comes before the next thing that the user says.

        The state notes whose turn it is: nobody's yet, the user's, in the middle of a
        message, the assistant's, which has said what it said, or that of a text that
        is no message.
        """
        state = self.session.state
        turn = state.notes.get("turn")
        if turn is None or not state.tokens:
            return self.template.parts
        if turn == "text" and self.template.opening:
            return self.template.parts
        if turn in ("text", "user"):
            return [(PARAGRAPH, False)]
        following = self.template.following
        if following is None:
            raise AllMemError("the chat template allows no second turn")
        # A response that was not cut off has ended itself.
        last = [*state.recent, *state.waiting][-1]
        if last in self.session.tokenizer.eos_token_ids:
            following = following.removeprefix(self.session.tokenizer.decode([last]))
        return [(following, False)]

    def _encode(self, parts: list[Part]) -> list[int]:
        start = [] if self.session.state.tokens else self.template.start
        tokenizer = self.session.tokenizer
        return start + encode(tokenizer, parts, self.allow_special_tokens)

    def _note(self, turn: str) -> State:
        """Notes whose turn it is. A document that was read ends here."""
        state = self.session.state.fork()
        state.close_documents()
        state.notes["turn"] = turn
        self.session.state = state
        return state
