"""Summarise a document: each part by itself, with its place, then the whole."""

import argparse
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .archive.citations import printable_line
from .cli.archive_flags import archive_beside
from .cli.flags import (
    add_model,
    add_reading,
    add_sampling,
    add_sizes,
    chat_template_config,
    check_counts,
    check_state_files,
    check_texts,
    load_model,
    make_sampler,
    warn,
)
from .cli.progress import PIECE, Progress
from .cli.run import ENDS, ArgumentParser, hear_signals, run
from .documents import Document
from .errors import AllMemError, SettingError

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
    add(
        "--part-tokens",
        type=int,
        metavar="N",
        help="Tokens of a part, about, where sections are longer. Default: what the "
        "window has room for, 2048 at most",
    )
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
    if args.part_tokens is not None and args.part_tokens < 1:
        raise SettingError("--part-tokens must be at least 1")
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
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise AllMemError(
            f"{str(place)!r} cannot be written, where summaries are kept; copy it, or "
            "choose another place"
        )


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

    import mlx.core as mx

    from .archive.archive import Archive
    from .chat_template import Template
    from .cli.summaries import print_summaries
    from .summaries import Summariser

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
            part_tokens=args.part_tokens,
            max_tokens=args.max_tokens,
            seed=args.seed,
            step=args.prefill_step_size,
            allow_special_tokens=args.allow_special_tokens,
            settings=[getattr(args, name) for name in SAMPLING],
            sampler=make_sampler(args, tokenizer),
            stop=args.stop,
        )
        goes_on = "they are lost; --archive FILE would keep them"
        if place is not None:
            goes_on = f"they are in {str(place)!r}; the same command goes on from there"
        print_summaries(summariser, entries, goes_on, args.json)
    if not args.json:
        print(f"Peak memory: {mx.get_peak_memory() / 1e9:.3f} GB")
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
            yield archive.add(document, args.allow_special_tokens, progress.indexed)
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
    for entry in entries:
        if not entry.complete:
            name = printable_line(entry.name)
            warn(f"{archive.name} has {entry.tokens} tokens of {name}, not all")
    yield from entries


def main() -> None:
    run(setup_arg_parser(), summarise)


if __name__ == "__main__":
    main()
