"""Examples of a suite with passages of their context."""

from dataclasses import replace
from typing import Any

from ...chat_template import PARAGRAPH
from ...conversation import room_beside
from ...documents.tokens import token_ids
from ...model import Model
from ..lookups import ArchivedDocument, TemporaryArchives
from ..systems import ALLMEM, ALLMEM_PASSAGES, PASSAGES_ONLY, WINDOW, WINDOW_PASSAGES
from .suite import Example

# The system that answers, and True if the context is in the prompt too.
COLUMNS = {
    ALLMEM_PASSAGES: (ALLMEM, True),
    WINDOW_PASSAGES: (WINDOW, True),
    PASSAGES_ONLY: (ALLMEM, False),
}


class Passages:
    """Looks up passages and puts them into prompts.

    Args:
        model (Model): its window bounds the passages.
        tokenizer: its tokenizer.
        limit (int): passages at most.
        archives (TemporaryArchives): gets an archive for each context.
    """

    def __init__(
        self, model: Model, tokenizer: Any, limit: int, archives: TemporaryArchives
    ):
        self.model, self.tokenizer, self.limit = model, tokenizer, limit
        self._archives, self._documents = archives, dict[str, ArchivedDocument]()

    def text(self, example: Example) -> str:
        """The passages, as the command quotes them; empty if none is found.

        Beside them the window has room for the rest of the prompt after the context.
        """
        context = example.context
        if not context.strip():
            return ""
        if context not in self._documents:
            path = self._archives.path("context.txt")
            path.write_bytes(context.encode(errors="replace"))
            self._documents[context] = self._archives.add(path)
        _, rest = _around(example)
        tokens = len(token_ids(self.tokenizer, rest))
        room = room_beside(tokens, self.model, example.max_tokens)
        if room < 1:
            return ""
        session = self._documents[context].session(self.model)
        lookup = session.look_up(example.question, self.limit, room, example.max_tokens)
        return lookup.quoted.rstrip("\n") if lookup else ""

    def examples(self, example: Example) -> dict[str, tuple[str, Example]]:
        """By column the system that answers, and the example with the passages after
        the context of the publisher's prompt, or in its place."""
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
    """The prompt before and after the context."""
    if not example.context:
        return example.prompt, ""
    before, _, after = example.prompt.partition(example.context)
    return before, after
