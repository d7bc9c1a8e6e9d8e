"""A conversation as one growing sequence of tokens.

A chat template renders whole conversations. Here it is asked once what stands around
the things that are said, so that a turn can be appended to what a model has read, and
a document can be read as a part of a user's message.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.exceptions import TemplateError

from .errors import AllMemError
from .session import Session
from .streaming import GenerationResponse

# They stand for what is said while the template is rendered.
USER = "<<7f4e0c1a said by the user 9b2d>>"
ASSISTANT = "<<7f4e0c1a said by the assistant 9b2d>>"
PARAGRAPH = "\n\n"  # between the parts of a message


@dataclass
class Template:
    """What stands around the things that are said.

    Args:
        opening (str): before the first message of the user, the system prompt with it.
        closing (str): after a message of the user, up to the response.
        following (str): after a response, up to the next message of the user; ``None``
            if the template allows no second turn.
        start (list): token ids before everything.
    """

    opening: str
    closing: str
    following: str | None
    start: list[int]

    @classmethod
    def plain(cls, tokenizer: Any) -> "Template":
        """Texts as they stand, one after the other."""
        # What the tokenizer puts before every text, a BOS for one.
        return cls("", "", PARAGRAPH, tokenizer.encode(""))

    @classmethod
    def of_chat(
        cls,
        tokenizer: Any,
        system: str | None = None,
        prefill: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> "Template":
        """What a tokenizer's chat template puts around messages.

        Args:
            tokenizer: mlx-lm's wrapper of a tokenizer that has a chat template.
            system (str): the system prompt; the template's own if ``None``.
            prefill (str): first words of every response.
            options (dict): further arguments of the template.

        Raises:
            AllMemError: if the template does not repeat messages as they are.
        """

        def render(*messages: tuple[str, str], respond: bool = True) -> str:
            first = [] if system is None else [("system", system)]
            return tokenizer.apply_chat_template(
                [{"role": r, "content": text} for r, text in [*first, *messages]],
                tokenize=False,
                add_generation_prompt=respond,
                continue_final_message=not respond,
                **(options or {}),
            )

        started = [] if prefill is None else [("assistant", prefill)]
        rendered = render(("user", USER), *started, respond=prefill is None)
        opening, closing = _around(rendered, USER)
        following = None
        with suppress(TemplateError, AllMemError):
            rendered = render(("user", "."), ("assistant", ASSISTANT), ("user", USER))
            following, _ = _around(_around(rendered, ASSISTANT)[1], USER)
        return cls(opening, closing, following, [])


def _around(rendered: str, mark: str) -> tuple[str, str]:
    if rendered.count(mark) != 1:
        raise AllMemError(
            "the chat template does not repeat the message as it is; use "
            "--ignore-chat-template"
        )
    before, _, after = rendered.partition(mark)
    return before, after


class Conversation:
    """Turns of a user and a model, in what a session reads.

    Args:
        session (Session): where it takes place.
        template (Template): what stands around the turns.
    """

    def __init__(self, session: Session, template: Template):
        self.session, self.template = session, template

    def read(self, pieces: Iterable[list[int]], **options: Any) -> Iterator[int]:
        """Reads a document as a part of the user's message; see ``Session.read``."""
        before = self._encode(self._before())
        self._note("user")
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
        prompt = self._encode(self._before() + text + self.template.closing)
        self._note("assistant")
        return self.session.read([prompt], **options)

    def _before(self) -> str:
        """What comes before the next thing that the user says.

        The state notes whose turn it is: nobody's yet, the user's, in the middle of a
        message, the assistant's, which has said what it said, or that of a text that
        is no message.
        """
        state = self.session.state
        turn = state.notes.get("turn")
        if turn is None or not state.tokens:
            return self.template.opening
        if turn == "text":
            return self.template.opening or PARAGRAPH
        if turn == "user":
            return PARAGRAPH
        following = self.template.following
        if following is None:
            raise AllMemError("the chat template allows no second turn")
        # A response that was not cut off has ended itself.
        last = [*state.recent, *state.waiting][-1]
        if last in self.session.tokenizer.eos_token_ids:
            following = following.removeprefix(self.session.tokenizer.decode([last]))
        return following

    def _encode(self, text: str) -> list[int]:
        start = [] if self.session.state.tokens else self.template.start
        return start + self.session.tokenizer.encode(text, add_special_tokens=False)

    def _note(self, turn: str) -> None:
        state = self.session.state.fork()
        state.notes["turn"] = turn
        self.session.state = state
