"""A progress bar for reading a document."""

import sys
import time
from contextlib import suppress
from typing import Any

# Bytes tokenised at a time: small enough for the bar to move steadily.
PIECE = 8192


class Progress:
    """A bar on stderr, on a terminal only: tokens, tokens per second and time left.

    It shows the share of the file's bytes that were tokenised, or of the tokens to read
    if their number is known; see :meth:`expect`.
    """

    def __init__(self, document: Any):
        from tqdm import tqdm

        self.document = document
        self.tokens: int | None = None
        bar = "|{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
        self.bar = tqdm(
            total=document.size,
            bar_format="{desc}" + (" [{elapsed}]" if document.size is None else bar),
            leave=False,
            disable=None,  # where stderr is not a terminal
        )
        self.start = time.perf_counter()

    def expect(self, tokens: int) -> None:
        """Begins to show a number of tokens that are to be read."""
        self.tokens = max(tokens, 0)
        self.bar.reset(self.tokens)
        self.start = time.perf_counter()

    def __call__(self, tokens: int) -> None:
        speed = tokens / (time.perf_counter() - self.start)
        self.bar.set_description_str(
            f"{tokens} tokens, {speed:.0f} tokens-per-sec ", refresh=False
        )
        if self.tokens is None:
            self.bar.n = self.document.bytes_read
        else:
            self.bar.n = min(tokens, self.tokens)
        self.bar.refresh()

    def indexed(self, tokens: int) -> None:
        """Shows the tokens of a document that is indexed, not read."""
        self.bar.set_description_str(f"{tokens} tokens indexed ", refresh=False)
        self.bar.n = self.document.bytes_read
        self.bar.refresh()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.bar.write(f"[{text}]", file=sys.stderr)

    def clear(self) -> None:
        """Makes room for a line; the next call draws the bar again."""
        self.bar.clear()

    def close(self) -> None:
        with suppress(OSError):  # the terminal is closed
            self.bar.close()
