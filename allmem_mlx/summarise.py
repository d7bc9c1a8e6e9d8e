"""Summarise a document: each part by itself, with its place, then the whole."""

import argparse
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from .archive.citations import printable_line
from .cli.archive_flags import archive_beside, archive_place
from .cli.flags import (
    add_generation,
    add_model,
    check_numbers,
    check_state_files,
    decode_texts,
    load_model,
    make_sampler,
    make_template,
    warn,
)
from .cli.progress import PIECE, Progress
from .cli.run import ENDS, ArgumentParser, hear_signals, run
from .documents import Document
from .errors import AllMemError, SettingError

# Flags of the sampler, on which summaries depend.
SAMPLING = (
    *("temp", "top_p", "min_p", "top_k", "xtc_probability", "xtc_threshold"),
    "min_tokens_to_keep",
)


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx summarise", description=__doc__)
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="Document to summarise: PDF, EPUB, Word, HTML, RTF, Markdown or text, or "
        "a folder of them ('-' reads stdin). Several make one document",
    )
    add(
        "--archive",
        metavar="FILE",
        help="Where the document and the summaries of its parts are stored, so that an "
        "interrupted run can continue. Without a document, all of the archive is "
        "summarised. Default with --load-state: the one beside the state",
    )
    add_model(parser)
    add(
        "--part-tokens",
        type=int,
        metavar="N",
        help="Approximate tokens of a part, where sections are longer. Default: as "
        "many as the window has room for, 2048 at most",
    )
    add_generation(parser, max_tokens=128)
    add(
        "--json",
        action="store_true",
        help="Print JSON, one object per line: each part, then the whole",
    )
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other and files that cannot be used, before
    the model is loaded."""
    if args.files and args.load_state is not None:
        raise SettingError("give a document or --load-state, not both")
    if "" in (args.archive, *args.files):
        raise SettingError("the name of a file must not be empty")
    check_numbers(args)
    if args.part_tokens is not None and args.part_tokens < 1:
        raise SettingError("--part-tokens must be at least 1")
    check_state_files(args)
    place = archive_place(args)
    if not args.files and (place is None or not place.exists()):
        if place is None and args.load_state is None:
            raise SettingError("nothing to summarise: give a document or --load-state")
        beside = f" beside {args.load_state!r}" if place is None else ""
        missing = str(place or archive_beside(args.load_state))
        raise AllMemError(
            f"there is no archive{beside}: {missing!r} does not exist; name it with "
            "--archive, or give the document itself"
        )
    if place is None:
        return
    from .archive.archive import Archive

    if place.exists():
        Archive.open(place).close()
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise AllMemError(
            f"{str(place)!r} cannot be written, where summaries are stored; copy it, "
            "or choose another place"
        )


def summarise(args: argparse.Namespace) -> None:
    check_args(args)
    decode_texts(args, "system_prompt")
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

    import mlx.core as mx

    from .archive.archive import Archive
    from .cli.summaries import print_summaries
    from .summaries import Summariser

    model, tokenizer = load_model(args)
    template = make_template(args, tokenizer)
    hear_signals(*ENDS)
    place = archive_place(args)
    if place is None:
        archive = Archive.temporary(tokenizer)
    else:
        # check_args has verified it.
        archive = Archive.open(place, tokenizer, create=True, verify=False)
    with closing(archive):
        entries = [*documents(args, archive, document, model)]
        summariser = Summariser(
            model,
            tokenizer,
            archive,
            template,
            part_tokens=args.part_tokens,
            max_tokens=args.max_tokens,
            seed=args.seed,
            step=args.prefill_step_size,
            allow_special_tokens=args.allow_special_tokens,
            settings=[getattr(args, name) for name in SAMPLING],
            sampler=make_sampler(args, tokenizer),
            stop=args.stop,
        )
        hint = "they are not saved; use --archive FILE to keep them"
        if place is not None:
            hint = f"they are in {str(place)!r}; the same command continues from there"
        print_summaries(summariser, entries, hint, args.json)
    if not args.json:
        print(f"Peak memory: {mx.get_peak_memory() / 1e9:.3f} GB")
    if document is not None:
        for warning in document.warnings:
            warn(warning)


def documents(
    args: argparse.Namespace, archive: Any, document: Document | None, model: Any
) -> Iterator[Any]:
    """The documents to summarise: the one given, once it is in the archive, or those
    that a state has read, or all of the archive.

    Raises:
        AllMemError: if there is none.
    """
    from . import state as states
    from .archive.lookup import entries_by_key

    if document is not None:
        with closing(Progress(document)) as progress:
            yield archive.add(document, args.allow_special_tokens, progress.indexed)
        return
    keys = None
    if args.load_state is not None:
        state = states.load(args.load_state, model)
        entries_by_key(archive, state)
        keys = state.documents
    entries = [x for x in archive.documents() if keys is None or x.key in keys]
    if not entries:
        whose = archive.name if keys is None else repr(args.load_state)
        raise AllMemError(f"{whose} has no document to summarise")
    for entry in entries:
        if not entry.complete:
            name = printable_line(entry.name)
            warn(f"{archive.name} has {entry.tokens} tokens of {name}, not all")
    yield from entries


def main() -> None:
    run(setup_arg_parser(), summarise)


if __name__ == "__main__":
    main()
