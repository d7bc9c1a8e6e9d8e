"""Summarise a document: each part by itself, with its place, then the whole."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from .archive.citations import printable, printable_line
from .archive.flags import archive_beside
from .command import (
    ENDS,
    ArgumentParser,
    add_model,
    add_reading,
    add_sampling,
    add_sizes,
    chat_template_config,
    check_counts,
    check_state_files,
    check_texts,
    hear_signals,
    load_model,
    make_sampler,
    run,
    warn,
)
from .document import Document
from .errors import AllMemError, SettingError
from .progress import PIECE, Progress

NOTHING = "(the model said nothing)"

# What of the command line changes how tokens are chosen.
SAMPLING = (
    *("temp", "top_p", "min_p", "top_k", "xtc_probability", "xtc_threshold"),
    "min_tokens_to_keep",
)


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.summarise", description=__doc__)
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="Document to summarise: PDF, EPUB, Word, HTML, RTF, Markdown or text, or "
        "a folder of them ('-' reads stdin). Several are one",
    )
    add(
        "--archive",
        metavar="FILE",
        help="Where the document and the summaries of its parts are kept, so that a "
        "run that was stopped goes on. Without a document, all that it has is "
        "summarised. Default with --load-state: the one beside the state",
    )
    add_model(parser)
    add_sizes(parser)
    add("--max-tokens", "-m", type=int, default=128, help="Tokens of each summary")
    add_sampling(parser)
    add_reading(parser)
    add(
        "--json",
        action="store_true",
        help="Print a JSON object a line: each part, then the whole",
    )
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot be obeyed, before the model is loaded."""
    if args.files and args.load_state is not None:
        raise SettingError("give a document or --load-state, not both")
    if "" in (args.archive, *args.files):
        raise SettingError("the name of a file must not be empty")
    check_counts(args)
    check_state_files(args)
    place = archive_place(args)
    if place is None:
        if not args.files:
            raise SettingError("nothing to summarise: give a document or --load-state")
        return
    from .archive.archive import Archive

    if place.exists():
        Archive.open(place).close()
    elif not args.files:
        state = f" beside {args.load_state!r}" if args.archive is None else ""
        raise AllMemError(
            f"there is no archive{state}: {str(place)!r} does not exist; name it with "
            "--archive, or give the document itself"
        )
    elif not os.access(place.parent, os.W_OK):
        raise AllMemError(f"{str(place)!r} cannot be written; choose another place")


def archive_place(args: argparse.Namespace) -> Path | None:
    """Where the archive is; ``None`` for a temporary one."""
    if args.archive is not None:
        return Path(args.archive)
    return None if args.load_state is None else archive_beside(args.load_state)


def summarise(args: argparse.Namespace) -> None:
    check_args(args)
    check_texts(args, "system_prompt")
    template_config = chat_template_config(args.chat_template_config)
    document = None
    if args.files:
        document = Document(args.files if len(args.files) > 1 else args.files[0], PIECE)
        for note in document.notes:
            warn(note)
        if document.size is None and args.archive is not None:
            raise SettingError(
                f"{document.name} cannot be read twice, so nothing is kept of it; "
                "leave out --archive, or save it to a file first"
            )

    from .archive.archive import Archive
    from .archive.summaries import Summariser
    from .conversation import Template

    model, tokenizer = load_model(args)
    if tokenizer.has_chat_template:
        template = Template.of_chat(
            tokenizer, args.system_prompt, options=template_config
        )
        for note in template.notes:
            warn(note)
    elif args.system_prompt is not None or template_config:
        flag = "system-prompt" if args.system_prompt else "chat-template-config"
        raise SettingError(
            f"--{flag} needs a chat template; the model's tokenizer has none"
        )
    else:
        template = Template.plain(tokenizer)
    hear_signals(*ENDS)
    place = archive_place(args)
    if place is None:
        archive = Archive.temporary(tokenizer)
    else:
        archive = Archive.open(place, tokenizer, create=True)
    with closing(archive):
        entries = [*documents(args, archive, document, model)]
        summariser = Summariser(
            model,
            tokenizer,
            archive,
            template,
            max_tokens=args.max_tokens,
            seed=args.seed,
            step=args.prefill_step_size,
            allow_special_tokens=args.allow_special_tokens,
            settings=[getattr(args, name) for name in SAMPLING],
            sampler=make_sampler(args, tokenizer),
            stop=args.stop,
        )
        print_summaries(summariser, entries, args.json, place)
    if document is not None:
        for warning in document.warnings:
            warn(warning)


def documents(
    args: argparse.Namespace, archive: Any, document: Document | None, model: Any
) -> Iterator[Any]:
    """What is to be summarised: the document, once it is in the archive, those that a
    state has read, or all that an archive has.

    Raises:
        AllMemError: if there is none.
    """
    from . import state as states
    from .archive.lookup import belongs

    if document is not None:
        with closing(Progress(document)) as progress:
            yield archive.add(document, args.allow_special_tokens, progress)
        return
    keys = None
    if args.load_state is not None:
        state = states.load(args.load_state, model)
        belongs(archive, state)
        keys = state.documents
    entries = [x for x in archive.documents() if keys is None or x.key in keys]
    if not entries:
        whose = archive.name if keys is None else repr(args.load_state)
        raise AllMemError(f"{whose} has no document to summarise")
    yield from entries


def print_summaries(
    summariser: Any, entries: list[Any], as_json: bool = False, place: Any = None
) -> None:
    """Prints the summary of each part as it comes, and that of the whole.

    Args:
        summariser (Summariser): makes them.
        entries (list): the documents.
        as_json (bool): print JSON objects.
        place: of the archive in which they are kept; ``None`` if they are not.

    Raises:
        AllMemError: if the documents have no words.
    """
    from .archive.summaries import parts

    total = sum(1 for entry in entries for _ in parts(summariser.archive, entry))
    if not total:
        raise AllMemError("there is nothing to summarise: the document has no words")
    tokens = sum(entry.tokens for entry in entries)
    kept = 0
    with closing(Bar(tokens, total)) as bar:
        try:
            for number, summary in enumerate(summariser.parts(entries), 1):
                bar.clear()
                tell(summary, number, as_json)
                bar(summary)
                kept += summary.kept
            whole = summariser.whole()
        except KeyboardInterrupt:
            bar.close()
            if bar.done:
                where = "they are lost; --archive FILE would keep them"
                if place is not None:
                    where = f"they are in {str(place)!r}; the same command goes on"
                with suppress(OSError):
                    done = f"{bar.done} of {total} parts are done"
                    print(f"\n{done}; {where}", file=sys.stderr)
            raise
    if as_json:
        about = {"parts": total, "parts_kept": kept, "document_tokens": tokens}
        print(json.dumps({"summary": whole.text, **about}))
        return
    if total > 1:
        print("=" * 10)
        print(printable(whole.text) or NOTHING)
        print("=" * 10)
    before = f", {kept} of them kept from before" if kept else ""
    print(f"{total} part{'s' * (total > 1)} of {tokens} tokens{before}")


def tell(summary: Any, number: int, as_json: bool) -> None:
    """Prints the summary of a part, and where it is from."""
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
    """A bar on stderr, on a terminal only: parts done and time left, which follows the
    tokens of the parts. What was kept from before takes no time."""

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

    def __call__(self, summary: Any) -> None:
        self.done += 1
        self.bar.n += summary.part.tokens
        if summary.kept:
            self.bar.initial += summary.part.tokens
        self.bar.set_description_str(f"{self.done} of {self.parts} parts ")

    def clear(self) -> None:
        """Makes room for what is printed; the next call draws the bar again."""
        self.bar.clear()

    def close(self) -> None:
        with suppress(OSError):  # the terminal is closed
            self.bar.close()


def main() -> None:
    run(setup_arg_parser(), summarise)


if __name__ == "__main__":
    main()
