"""A conversation as one growing sequence of tokens.

A turn is appended to what a session has read, and a document is read as a part of a
user's message.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from . import state as states
from .chat_template import PARAGRAPH, Template
from .documents.plain_text import Part, encode
from .errors import AllMemError
from .model import Model
from .responses import Responses

FRAME = 16  # tokens of a chat template around a question


def room_beside(tokens: int, model: Model, max_tokens: int) -> int:
    """The tokens that a window has left beside a text of some tokens, a chat template
    and a response, which is taken for a quarter of the window at most."""
    window = model.allmem.window
    response = window // 4 if max_tokens < 0 else min(max_tokens, window // 4)
    return window - tokens - FRAME - response


class Reader(Protocol):
    """The part of a :class:`~allmem_mlx.session.Session` that a conversation needs."""

    state: states.State
    tokenizer: Any

    def read(self, *args: Any, **options: Any) -> Iterator[int]: ...

    def generate(self, *args: Any, **options: Any) -> Responses: ...


class Conversation:
    """Turns of a user and a model, in what a session reads.

    Args:
        session (Session): where it takes place.
        template (Template): the text around the turns.
        allow_special_tokens (bool): read the names of control tokens in messages and
            the system prompt as control tokens, rather than as plain text.
    """

    def __init__(
        self, session: Reader, template: Template, allow_special_tokens: bool = False
    ):
        self.session, self.template = session, template
        self.allow_special_tokens = allow_special_tokens

    def read(
        self, pieces: Iterable[Sequence[int]], resume: bool = False, **options: Any
    ) -> Iterator[int]:
        """Reads a document as a part of the user's message; see ``Session.read``.

        Args:
            pieces: its tokens.
            resume (bool): the conversation begins with the document, and the state may
                have read a part of it, which is not read again.
            options: of ``Session.read``.
        """
        parts = self.template.parts if resume else self._before()
        opening = self._encode(parts, first=resume)
        self._note("user" if self.template.opening else "text")
        return self.session.read(pieces, opening=opening, resume=resume, **options)

    def check_resumed(self, pieces: Iterable[list[int]]) -> None:
        """Raises :class:`AllMemError` if a document that begins the conversation is
        not the one of which the state has read a part."""
        opening = self._encode(self.template.parts, first=True)
        next(states.unread(chain([opening], pieces), self.session.state), None)

    def ask(self, text: str, **options: Any) -> Responses:
        """Generates a response to the user's message; see ``Session.generate``."""
        for _ in self.say(text):
            pass
        return self.session.generate(**options)

    def say(self, text: str, **options: Any) -> Iterator[int]:
        """Reads the user's message, up to the response; see ``Session.read``."""
        closing = (self.template.closing, False)
        prompt = self._encode([*self._before(), (text, True), closing])
        self._note("assistant")
        return self.session.read([prompt], **options)

    def _before(self) -> list[Part]:
        """The text before the next thing that the user says.

        The state notes whose turn it is: nobody's yet, the user's, in the middle of a
        message, the assistant's, after a response, or that of a text that is no
        message.
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

    def _encode(self, parts: list[Part], first: bool = False) -> list[int]:
        """The tokens of texts, which come ``first`` of all or after what was read."""
        first = first or not self.session.state.tokens
        start = self.template.start if first else []
        return start + encode(self.session.tokenizer, parts, self.allow_special_tokens)

    def _note(self, turn: str) -> None:
        """Notes whose turn it is. A document that was read ends here."""
        state = self.session.state.fork()
        state.close_documents()
        state.notes["turn"] = turn
        self.session.state = state
