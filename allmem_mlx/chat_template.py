"""The text of a chat template around the messages of a conversation.

A template renders whole conversations. Here it is rendered once, and split: so a turn
can be appended to what a model has read, and a document can be read as a part of a
user's message.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .documents.plain_text import Part
from .errors import AllMemError, reason

# Stand-ins for the messages while the template is rendered.
SYSTEM = "<<7f4e0c1a the system prompt 9b2d>>"
USER = "<<7f4e0c1a said by the user 9b2d>>"
ASSISTANT = "<<7f4e0c1a said by the assistant 9b2d>>"

PARAGRAPH = "\n\n"  # between the parts of a message


@dataclass
class Template:
    """The text around the messages of a conversation.

    Args:
        opening (str): before the first message of the user, the system prompt with it.
        closing (str): after a message of the user, up to the response.
        following (str): after a response, up to the next message of the user; ``None``
            if the template allows no second turn.
        start (list): token ids before everything.
        system (tuple): where in the opening the system prompt begins and ends.
        notes (list): warnings about the template, a line each.
    """

    opening: str
    closing: str
    following: str | None
    start: list[int]
    system: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def plain(cls, tokenizer: Any) -> "Template":
        """No template: texts as they stand, one after the other."""
        # The tokenizer may begin every text with a token, such as BOS.
        return cls("", "", PARAGRAPH, tokenizer.encode(""))

    @classmethod
    def of(cls, tokenizer: Any) -> "Template":
        """The tokenizer's chat template, or a plain one if it has none."""
        return (cls.of_chat if tokenizer.has_chat_template else cls.plain)(tokenizer)

    @classmethod
    def of_chat(
        cls,
        tokenizer: Any,
        system: str | None = None,
        prefill: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> "Template":
        """The text that a tokenizer's chat template puts around messages.

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
                    f"the chat template fails ({reason(error)}); give it what it "
                    "needs with --chat-template-config, or do without it: allmem_mlx "
                    "generate --ignore-chat-template"
                ) from error

        opening, closing = _around(render(("user", USER)), USER)
        if prefill is not None:
            if prefill.lstrip().startswith(thought_marks(tokenizer)[0]):
                closing = _without_thought(closing, tokenizer) + prefill
            else:
                turns = ("user", USER), ("assistant", prefill)
                _, closing = _around(render(*turns, respond=False), USER)
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
        """The opening in parts. The system prompt comes from outside."""
        start, stop = self.system
        return [
            (self.opening[:start], False),
            (self.opening[start:stop], True),
            (self.opening[stop:], False),
        ]


def _around(rendered: str, mark: str) -> tuple[str, str]:
    """The text before and after a stand-in."""
    if rendered.count(mark) != 1:
        raise AllMemError(
            "the chat template does not repeat the message as it is; do without it: "
            "allmem_mlx generate --ignore-chat-template"
        )
    before, _, after = rendered.partition(mark)
    return before, after


def thought_marks(tokenizer: Any) -> tuple[str, str]:
    """The marks that open and close a thought."""
    return tokenizer.think_start or "<think>", tokenizer.think_end or "</think>"


def _without_thought(closing: str, tokenizer: Any) -> str:
    """The text before a response, without an open or an empty thought at its end."""
    start, end = map(re.escape, thought_marks(tokenizer))
    return re.sub(rf"{start}\s*({end}\s*)?\Z", "", closing)
