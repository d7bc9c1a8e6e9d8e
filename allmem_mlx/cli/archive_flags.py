"""The flags for looking up, the archive that they ask for, and what is printed."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..archive.citations import check, describe, printable_line, quoted_sentence
from ..archive.counting import counting_note
from ..errors import AllMemError, SettingError, warn

NOTHING_FOUND = "no passage has any of these words"


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for looking up."""
    add = parser.add_argument
    add(
        "--archive",
        metavar="FILE",
        help="Where documents are kept word for word, to be looked up. Default: beside "
        "the state, FILE.archive for FILE.allmem",
    )
    add("--no-archive", action="store_true", help="Answer from what was read alone")
    add(
        "--passages",
        type=int,
        metavar="N",
        help="Passages to look up for a question. Default: 4",
    )
    add(
        "--passage-tokens",
        type=int,
        metavar="N",
        help="Tokens for them. Default: what the window has beside question and answer",
    )


def check_archive(args: argparse.Namespace) -> None:
    """Refuses an archive that cannot be used, before anything is read.

    Raises:
        AllMemError: if a file is no archive, or is damaged.
        SettingError: if flags contradict each other.
    """
    if args.no_archive:
        for flag in ("archive", "passages", "passage_tokens"):
            if getattr(args, flag) is not None:
                name = flag.replace("_", "-")
                raise SettingError(f"--{name} cannot be used with --no-archive")
    if args.passages is not None and args.passages < 0:
        raise SettingError("--passages must be at least 0")
    if args.passage_tokens is not None and args.passage_tokens < 1:
        raise SettingError("--passage-tokens must be at least 1")
    if args.archive == "":
        raise SettingError("the name of an archive must not be empty")
    from ..archive.archive import Archive

    place = archive_place(args)
    if place is None:
        lost = args.load_state is not None and not args.no_archive
        if lost and (args.passages or args.passage_tokens):
            raise AllMemError(
                f"{str(archive_beside(args.load_state))!r} does not exist: what the "
                "state has read cannot be looked up"
            )
        return
    for state in (getattr(args, "save_state", None), args.load_state):
        if state is not None and os.path.realpath(state) == os.path.realpath(place):
            raise SettingError(f"{state!r} cannot be both a state and an archive")
    if place.exists() and not (makes_archive(args) and is_empty(place)):
        Archive.open(place).close()
    elif not makes_archive(args):
        raise AllMemError(f"{str(place)!r} does not exist; check the name")
    elif not os.access(place.parent, os.W_OK):
        raise AllMemError(f"{str(place)!r} cannot be written; choose another place")


def is_empty(path: Path) -> bool:
    """Whether a file has nothing in it, as one that found no room on the disk."""
    return path.is_file() and path.stat().st_size == 0


def archive_beside(state: str) -> Path:
    """Where the archive of a state is, by its name."""
    return Path(state.removesuffix(".allmem") + ".archive")


def archive_place(args: argparse.Namespace) -> Path | None:
    """Where the archive is; ``None`` if nothing says where."""
    if args.archive is not None:
        return Path(args.archive)
    if args.no_archive:
        return None
    if getattr(args, "save_state", None) is not None:
        beside = archive_beside(args.save_state)
        if args.prompt_file is not None or beside.exists():
            return beside
    if args.load_state is not None:
        beside = archive_beside(args.load_state)
        return beside if beside.exists() else None
    return None


def makes_archive(args: argparse.Namespace) -> bool:
    """Whether documents are added to it."""
    if not hasattr(args, "prompt_file"):  # a chat reads what it is told to
        return args.archive is not None
    return args.prompt_file is not None and archive_place(args) is not None


def wants_archive(args: argparse.Namespace) -> bool:
    """Whether there is an archive at all."""
    asked_for = args.passages or args.passage_tokens or args.index_only
    return not args.no_archive and (
        archive_place(args) is not None or bool(asked_for and args.prompt_file)
    )


def open_archive(args: argparse.Namespace, tokenizer: Any, state: Any) -> Any:
    """The archive of what was read and will be.

    Raises:
        AllMemError: if it cannot be opened, or does not belong to the state.
    """
    from ..archive.archive import Archive
    from ..archive.lookup import belongs

    place = archive_place(args)
    if place is None:
        return Archive.temporary(tokenizer)
    archive = Archive.open(place, tokenizer, create=makes_archive(args))
    if getattr(args, "prompt_file", None) is None:  # else it is added to the archive
        entries = belongs(archive, state)
        if not state.documents:  # a state that has read none is asked about all
            for key in entries:
                state.add_document(key)
    return archive


def looking_up(args: argparse.Namespace) -> dict[str, Any]:
    """What ``Session.look_up`` is told."""
    given = {
        "passages": args.passages,
        "passage_tokens": args.passage_tokens,
    }
    return {name: value for name, value in given.items() if value is not None}


def working_archive(state_file: str | None, tokenizer: Any, state: Any) -> Any:
    """A temporary archive for a chat, with what the one beside a state's file has.

    Raises:
        AllMemError: if that is damaged, or does not belong to the state.
    """
    from ..archive.archive import Archive
    from ..archive.lookup import belongs

    archive = Archive.temporary(tokenizer)
    if state_file is None:
        return archive
    if (beside := archive_beside(state_file)).exists():
        kept = Archive.open(beside, tokenizer)
        kept.copy(archive)
        kept.close()
        belongs(archive, state)
    else:
        warn_of_lost(beside, state)
        state.notes.pop("documents", None)
    return archive


def warn_of_lost(beside: Path, state: Any) -> None:
    """Says that what a state has read cannot be looked up."""
    if state.documents:
        warn(f"{str(beside)!r} does not exist: what was read cannot be looked up")


def print_sources(lookup: Any, question: str | None, answer: str, archive: Any) -> None:
    """What an answer rests on: places and sentences, and what of it stands there."""
    if lookup is None or question is None:
        return
    print()
    for source in lookup.sources:
        passage = source.passage
        sentence = quoted_sentence(passage.text, question, answer)
        unread = " (not read yet)" if lookup.read and not source.read else ""
        where = printable_line(passage.where)
        print(f"[{source.number}] {where}{unread}: {sentence}")
    if lookup.sources and (line := describe(check(answer, texts(lookup)))):
        print(line)
    if line := counting_note(archive, lookup, question, lookup.documents):
        print(line)
    print(lookup.summary)


def found_line(passage: Any, words: str) -> str:
    """A passage that was searched for, in a line: its place and a sentence."""
    sentence = quoted_sentence(passage.text, words, "")
    return f"{printable_line(passage.where)}: {sentence}"


def texts(lookup: Any) -> list[str]:
    """The passages that were put before the question, the best first."""
    return [source.passage.text for source in lookup.sources]


def record(lookup: Any, answer: str) -> dict[str, Any]:
    """The same as JSON."""
    if lookup is None:
        return {}
    sources = [
        {"number": source.number, "read": source.read, **source.passage.record}
        for source in lookup.sources
    ]
    claims = [
        {"text": claim.text, "found": list(claim.found)}
        for claim in check(answer, texts(lookup))
    ]
    return {
        "sources": sources,
        "claims": claims,
        "passages_searched": lookup.searched,
        "passages_left_out": lookup.left_out,
        "document_tokens": lookup.tokens,
        "document_tokens_read": lookup.read,
    }
