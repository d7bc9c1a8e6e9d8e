"""Printed summaries, with progress on a terminal, or as JSON."""

import json
import sys
from contextlib import closing, suppress

from ..archive.citations import printable, printable_line
from ..archive.parts import parts
from ..archive.passage import Entry
from ..errors import AllMemError
from ..summaries import Summariser, Summary

NOTHING = "(no text was generated)"


def print_summaries(
    summariser: Summariser, entries: list[Entry], hint: str, as_json: bool = False
) -> None:
    """Prints the summary of each part of some documents as it comes, and that of the
    whole; after Ctrl-C, the number of finished parts and a hint."""
    total = sum(
        1
        for entry in entries
        for _ in parts(summariser.archive, entry, summariser.part_tokens)
    )
    if not total:
        raise AllMemError("there is nothing to summarise: the document has no words")
    tokens = sum(entry.tokens for entry in entries)
    reused = 0
    with closing(Bar(tokens, total)) as bar:
        try:
            for number, summary in enumerate(summariser.parts(entries), 1):
                bar.clear()
                print_summary(summary, number, as_json)
                bar(summary)
                reused += summary.reused
            whole = summariser.whole()
        except KeyboardInterrupt:
            bar.close()
            if bar.done:
                with suppress(OSError):  # the terminal is closed
                    done = f"{bar.done} of {total} parts are done"
                    print(f"\n{done}; {hint}", file=sys.stderr)
            raise
    assert whole is not None
    if as_json:
        about = {"parts": total, "parts_kept": reused, "document_tokens": tokens}
        print(json.dumps({"summary": whole.text, **about}))
        return
    if total > 1:
        print("=" * 10)
        print(printable(whole.text) or NOTHING)
        print("=" * 10)
    before = f", {reused} of them kept from before" if reused else ""
    print(f"{total} part{'s' * (total > 1)} of {tokens} tokens{before}")


def print_summary(summary: Summary, number: int, as_json: bool) -> None:
    """Prints the summary of a part, and its place."""
    part = summary.part
    if as_json:
        record = {
            "part": number,
            "where": part.where,
            "source": part.start.source,
            "section": part.start.section,
            "first_page": part.start.page,
            "last_page": part.end.page,
            "first": part.first,
            "last": part.last,
            "text": summary.text,
            "not_in_the_part": list(summary.missing),
        }
        print(json.dumps(record), flush=True)
        return
    where = printable_line(part.where)
    print(f"[{number}] {where}, tokens {part.first} to {part.last}")
    print(printable(summary.text) or NOTHING)
    if summary.missing:
        missing = ", ".join(f'"{printable_line(text)}"' for text in summary.missing)
        print(f"Not word for word in this part: {missing}")
    print(flush=True)


class Bar:
    """A bar on stderr, on a terminal only: parts done, and time left for the tokens of
    the others. Summaries that were kept from before take no time."""

    def __init__(self, tokens: int, parts: int):
        from tqdm import tqdm

        self.done, self.parts = 0, parts
        self.bar = tqdm(
            desc=f"0 of {parts} parts ",
            total=tokens,
            bar_format="{desc}|{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]",
            leave=False,
            disable=None,  # where stderr is not a terminal
        )

    def __call__(self, summary: Summary) -> None:
        self.done += 1
        self.bar.n += summary.part.tokens
        if summary.reused and not self.bar.disable:
            self.bar.initial += summary.part.tokens
        self.bar.set_description_str(f"{self.done} of {self.parts} parts ")

    def clear(self) -> None:
        """Makes room for what is printed; the next call draws the bar again."""
        self.bar.clear()

    def close(self) -> None:
        with suppress(OSError):  # the terminal is closed
            self.bar.close()
