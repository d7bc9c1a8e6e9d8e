"""A conversation as one growing sequence of tokens.

A chat template renders whole conversations. Here it is asked once what stands around
the things that are said, so that a turn can be appended to what a model has read, and
a document can be read as a part of a user's message.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from .errors import AllMemError, reason
from .plain_text import Part, encode
from .state import State

if TYPE_CHECKING:
    from .session import Session
    from .streaming import GenerationResponse

# They stand for what is said while the template is rendered.
SYSTEM = "<<7f4e0c1a the system prompt 9b2d>>"
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
        system (tuple): where in the opening the system prompt begins and ends.
        notes (list): what is to be said of the template, a line each.
    """

    opening: str
    closing: str
    following: str | None
    start: list[int]
    system: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def plain(cls, tokenizer: Any) -> "Template":
        """Texts as they stand, one after the other."""
        # What the tokenizer puts before every text, a BOS for one.
        return cls("", "", PARAGRAPH, tokenizer.encode(""))

    @classmethod
    def of(cls, tokenizer: Any) -> "Template":
        """The tokenizer's chat template, or none if it has none."""
        return (cls.of_chat if tokenizer.has_chat_template else cls.plain)(tokenizer)

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
            system (str): the system prompt; the template's own if ``None``. If the
                template has no system role, it begins the first message.
            prefill (str): first words of every response. If they open a thought, they
                take the place of one that the template opens.
            options (dict): further arguments of the template.

        Raises:
            AllMemError: if the template fails, or does not repeat messages as they are.
        """

        def render(*messages: tuple[str, str], respond: bool = True) -> str:
            try:
                return tokenizer.apply_chat_template(
                    [{"role": role, "content": text} for role, text in messages],
                    tokenize=False,
                    add_generation_prompt=respond,
                    continue_final_message=not respond,
                    **(options or {}),
                )
            except Exception as error:  # a template is a program
                raise AllMemError(
                    f"the chat template fails ({reason(error)}); "
                    "--chat-template-config may give it what it wants, and "
                    "allmem_mlx.generate --ignore-chat-template does without it"
                ) from error

        opening, closing = _around(render(("user", USER)), USER)
        if prefill is not None:
            if prefill.lstrip().startswith(thought_marks(tokenizer)[0]):
                closing = _without_thought(closing, tokenizer) + prefill
            else:
                said = ("user", USER), ("assistant", prefill)
                _, closing = _around(render(*said, respond=False), USER)
        following = None
        with suppress(AllMemError):
            rendered = render(("user", "."), ("assistant", ASSISTANT), ("user", USER))
            following, _ = _around(_around(rendered, ASSISTANT)[1], USER)
        template = cls(opening, closing, following, [])
        if system is not None:
            try:
                rendered = render(("system", SYSTEM), ("user", USER))
                before, after = _around(_around(rendered, USER)[0], SYSTEM)
            except AllMemError:
                before, after = opening, PARAGRAPH
                template.notes.append(
                    "the chat template has no system role; the system prompt begins "
                    "the first message"
                )
            template.opening = before + system + after
            template.system = len(before), len(before) + len(system)
        return template

    @property
    def parts(self) -> list[Part]:
        """The opening, of which the system prompt comes from outside."""
        start, stop = self.system
        return [
            (self.opening[:start], False),
            (self.opening[start:stop], True),
            (self.opening[stop:], False),
        ]


def _around(rendered: str, mark: str) -> tuple[str, str]:
    if rendered.count(mark) != 1:
        raise AllMemError(
            "the chat template does not repeat the message as it is; "
            "allmem_mlx.generate --ignore-chat-template does without it"
        )
    before, _, after = rendered.partition(mark)
    return before, after


def thought_marks(tokenizer: Any) -> tuple[str, str]:
    """What opens and closes a thought."""
    return tokenizer.think_start or "<think>", tokenizer.think_end or "</think>"


def _without_thought(closing: str, tokenizer: Any) -> str:
    """What leads to a response, without a thought that it opens, or closes at once."""
    start, end = map(re.escape, thought_marks(tokenizer))
    return re.sub(rf"{start}\s*({end}\s*)?\Z", "", closing)


class Conversation:
    """Turns of a user and a model, in what a session reads.

    Args:
        session (Session): where it takes place.
        template (Template): what stands around the turns.
        allow_special_tokens (bool): read the names of control tokens in messages and
            the system prompt as control tokens, rather than as plain text.
    """

    def __init__(
        self, session: "Session", template: Template, allow_special_tokens: bool = False
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
    ) -> Generator["GenerationResponse", None, None]:
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
