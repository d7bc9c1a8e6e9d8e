"""Examples of a suite with passages of their context, looked up with their question."""

from dataclasses import replace
from typing import Any

from ...chat_template import PARAGRAPH
from ...documents.tokens import token_ids
from ...model import Model
from ...session import room_beside
from ..lookups import Shelf, Shelves
from ..systems import ALLMEM, ALLMEM_PASSAGES, PASSAGES_ONLY, WINDOW, WINDOW_PASSAGES
from .suite import Example

# Who answers, and whether the context is in the prompt too.
COLUMNS = {
    ALLMEM_PASSAGES: (ALLMEM, True),
    WINDOW_PASSAGES: (WINDOW, True),
    PASSAGES_ONLY: (ALLMEM, False),
}


class Passages:
    """Looks up passages and puts them into prompts.

    Args:
        model (Model): whose window bounds the passages.
        tokenizer: its tokenizer.
        most (int): passages at most.
        shelves (Shelves): where contexts are kept.
    """

    def __init__(self, model: Model, tokenizer: Any, most: int, shelves: Shelves):
        self.model, self.tokenizer, self.most = model, tokenizer, most
        self._shelves, self._known = shelves, dict[str, Shelf]()

    def text(self, example: Example) -> str:
        """The passages, as the command quotes them; empty if none is found.

        What the prompt has after the context has its place in the window beside them.
        """
        context = example.context
        if not context.strip():
            return ""
        if context not in self._known:
            path = self._shelves.path("context.txt")
            path.write_bytes(context.encode(errors="replace"))
            self._known[context] = self._shelves.add(path)
        _, rest = _around(example)
        tokens = len(token_ids(self.tokenizer, rest))
        room = room_beside(tokens, self.model, example.most)
        if room < 1:
            return ""
        session = self._known[context].session(self.model)
        lookup = session.look_up(example.question, self.most, room, example.most)
        return lookup.quoted.rstrip("\n") if lookup else ""

    def examples(self, example: Example) -> dict[str, tuple[str, Example]]:
        """By column who answers, and what is asked: the publisher's prompt with the
        passages after the context, or in its place."""
        (before, after), text = _around(example), self.text(example)
        both = f"{example.context}{PARAGRAPH}{text}" if text else example.context
        return {
            name: (
                system,
                replace(example, prompt=before + (both if reads else text) + after),
            )
            for name, (system, reads) in COLUMNS.items()
        }


def _around(example: Example) -> tuple[str, str]:
    """What the prompt has before and after the context."""
    if not example.context:
        return example.prompt, ""
    before, _, after = example.prompt.partition(example.context)
    return before, after
