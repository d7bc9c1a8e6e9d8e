"""Search an archive for words, without a model."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from .archive.citations import printable, printable_line, quoted_sentence
from .cli.archive_flags import NOTHING_FOUND, archive_beside, found_line
from .cli.flags import decode_text
from .cli.run import ArgumentParser, run
from .errors import AllMemError, SettingError

SQLITE = b"SQLite format 3\0"  # the first bytes of an archive


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx search", description=__doc__)
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="An archive, or a state that has one beside it: book.archive, book.allmem",
    )
    add(
        "words",
        nargs="+",
        metavar="WORDS",
        help="Words, or a question. A passage needs one of them; those that have more, "
        "and rarer ones, come first",
    )
    add("--limit", "-k", type=int, default=5, metavar="N", help="Passages at most")
    add("--full", action="store_true", help="Print whole passages, not one sentence")
    add(
        "--json",
        action="store_true",
        help="Print passages as JSON, one object per line",
    )
    return parser


def archive_of(name: str) -> Path:
    """The archive with this name, or the one beside the state with this name.

    Raises:
        AllMemError: if there is none.
    """
    path, beside = Path(name), archive_beside(name)
    try:
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(SQLITE)) == SQLITE:
                    return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AllMemError(f"{name!r} cannot be read ({reason})") from None
    if beside.is_file():
        return beside
    if path.suffix == ".archive" or not path.exists():
        return path  # opening it raises the error
    if path.suffix == ".allmem":
        raise AllMemError(
            f"there is no archive beside {name!r}: {str(beside)!r} does not exist"
        )
    document, archive = map(shlex.quote, (name, str(path.with_suffix(".archive"))))
    raise AllMemError(
        f"{name!r} is not an archive; make one of a document: "
        f"allmem_mlx generate --prompt-file {document} --archive {archive} --index-only"
    )


def search(args: argparse.Namespace) -> None:
    if args.limit < 1:
        raise SettingError("--limit must be at least 1")
    from .archive.archive import Archive

    words = decode_text(" ".join(args.words), "the words")
    archive = Archive.open(archive_of(args.file))
    found = archive.search(words, args.limit)
    if not found:
        print(NOTHING_FOUND, file=sys.stderr)
        sys.exit(1)
    for number, passage in enumerate(found):
        if args.json:
            sentence = quoted_sentence(passage.text, words, "")
            more = {"where": passage.where, "sentence": sentence}
            print(json.dumps(passage.record | more))
        elif args.full:
            print("\n" * (number > 0) + printable_line(passage.where))
            print(printable(passage.text))
        else:
            print(found_line(passage, words))


def main() -> None:
    run(setup_arg_parser(), search)


if __name__ == "__main__":
    main()
