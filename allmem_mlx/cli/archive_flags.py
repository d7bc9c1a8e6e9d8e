"""The flags of an archive, the archive that they name, and its printed sources."""

import argparse
import os
from contextlib import closing
from pathlib import Path
from typing import Any

from ..archive.citations import check, describe, printable_line, quoted_sentence
from ..archive.counting import counting_note
from ..errors import AllMemError, SettingError, warn
from .flags import flag

NOTHING_FOUND = "no passage has any of these words"


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of an archive."""
    add = parser.add_argument
    add(
        "--archive",
        metavar="FILE",
        help="Where documents are kept word for word, to be looked up. Default: beside "
        "the state, FILE.archive for FILE.allmem",
    )
    add("--no-archive", action="store_true", help="Answer from what was read alone")
    add("--passages", type=int, metavar="N", help="Passages for a question. Default: 4")
    add(
        "--passage-tokens",
        type=int,
        metavar="N",
        help="Tokens for them. Default: what the window has beside question and answer",
    )


def check_archive(args: argparse.Namespace) -> None:
    """Refuses an archive that cannot be used, before anything is read."""
    if args.no_archive:
        for name in ("archive", "passages", "passage_tokens"):
            if getattr(args, name) is not None:
                raise SettingError(f"{flag(name)} cannot be used with --no-archive")
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
                f"{str(archive_beside(args.load_state))!r} does not exist: the "
                "documents of the state cannot be looked up"
            )
        return
    for state in (getattr(args, "save_state", None), args.load_state):
        if state is not None and os.path.realpath(state) == os.path.realpath(place):
            raise SettingError(f"{state!r} cannot be both a state and an archive")
    # A file that found no room on the disk is empty.
    empty = place.is_file() and place.stat().st_size == 0
    if place.exists() and not (makes_archive(args) and empty):
        Archive.open(place).close()
    elif not makes_archive(args):
        raise AllMemError(f"{str(place)!r} does not exist; check the name")
    elif not os.access(place.parent, os.W_OK):
        raise AllMemError(f"{str(place)!r} cannot be written; choose another place")


def archive_beside(state: str) -> Path:
    """The archive that belongs to a state file, by its name."""
    return Path(state.removesuffix(".allmem") + ".archive")


def archive_place(args: argparse.Namespace) -> Path | None:
    """The file of the archive; ``None`` if nothing names one."""
    if args.archive is not None:
        return Path(args.archive)
    if getattr(args, "no_archive", False):
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
    if not hasattr(args, "prompt_file"):  # a chat, which may read documents
        return args.archive is not None
    return args.prompt_file is not None and archive_place(args) is not None


def wants_archive(args: argparse.Namespace) -> bool:
    """Whether there is an archive at all."""
    temporary = args.passages or args.passage_tokens or args.index_only
    return not args.no_archive and (
        archive_place(args) is not None or bool(temporary and args.prompt_file)
    )


def open_archive(args: argparse.Namespace, tokenizer: Any, state: Any) -> Any:
    """The archive of what was read and will be."""
    from ..archive.archive import Archive
    from ..archive.lookup import entries_by_key

    place = archive_place(args)
    if place is None:
        return Archive.temporary(tokenizer)
    # check_archive has verified it.
    create = makes_archive(args)
    archive = Archive.open(place, tokenizer, create, verify=False)
    if getattr(args, "prompt_file", None) is None:  # else it is added to the archive
        entries = entries_by_key(archive, state)
        if not state.documents:  # a state without documents is asked about all
            for key in entries:
                state.add_document(key)
    return archive


def lookup_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``Session.look_up`` on the command line."""
    options = {"passages": args.passages, "passage_tokens": args.passage_tokens}
    return {name: value for name, value in options.items() if value is not None}


def working_archive(
    state_file: str | None, tokenizer: Any, state: Any, verify: bool = True
) -> Any:
    """A temporary archive for a chat: a copy of the one beside a state file, whose
    checksum may have been verified already."""
    from ..archive.archive import Archive
    from ..archive.lookup import entries_by_key

    archive = Archive.temporary(tokenizer)
    if state_file is None:
        return archive
    if (beside := archive_beside(state_file)).exists():
        with closing(Archive.open(beside, tokenizer, verify=verify)) as original:
            original.copy(archive)
        entries_by_key(archive, state)
    else:
        warn_of_lost(beside, state)
        state.notes.pop("documents", None)
    return archive


def warn_of_lost(beside: Path, state: Any) -> None:
    """Warns that the documents of a state cannot be looked up."""
    if state.documents:
        warn(f"{str(beside)!r} does not exist: what was read cannot be looked up")


def print_sources(lookup: Any, question: str | None, answer: str, archive: Any) -> None:
    """Prints the sources of an answer, and what of the answer stands in them."""
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
    """A passage that was found, in a line: its place and a sentence."""
    sentence = quoted_sentence(passage.text, words, "")
    return f"{printable_line(passage.where)}: {sentence}"


def texts(lookup: Any) -> list[str]:
    """The passages that were put before the question, the best first."""
    return [source.passage.text for source in lookup.sources]


def sources_record(lookup: Any, answer: str) -> dict[str, Any]:
    """The sources of an answer as JSON."""
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
