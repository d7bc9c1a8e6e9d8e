"""A progress bar for reading a document."""

import sys
import time
from typing import Any

# Bytes tokenised at a time: small enough for the bar to move steadily.
PIECE = 8192


class Progress:
    """A bar on stderr, on a terminal only: tokens, tokens per second and time left.

    It follows the bytes of the file that were tokenised, a known part of the whole.
    """

    def __init__(self, document: Any):
        from tqdm import tqdm

        self.document = document
        known = document is not None and document.size is not None
        self.bar = tqdm(
            total=document.size if known else None,
            bar_format="{desc}|{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
            if known
            else "{desc} [{elapsed}]",
            leave=False,
            disable=None,  # where stderr is not a terminal
        )
        self.start = time.perf_counter()

    def __call__(self, tokens: int) -> None:
        speed = tokens / (time.perf_counter() - self.start)
        self.bar.set_description_str(
            f"{tokens} tokens, {speed:.0f} tokens-per-sec ", refresh=False
        )
        if self.document is not None:
            self.bar.n = self.document.bytes_read
        self.bar.refresh()

    def indexed(self, tokens: int) -> None:
        """As a call, while a document is indexed, not read."""
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
        self.bar.close()
