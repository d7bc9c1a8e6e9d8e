"""Text files to train and to evaluate on: public-domain books, one file each.

git clone https://github.com/mlschmitt/classic-books-markdown CLONE
git -C CLONE checkout 944882722e9a96fa6cf2739dc2ea757e101f412f
python examples/distill_pytorch/books.py CLONE BOOKS
"""

import re
from pathlib import Path
from typing import Any

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.errors import AllMemError

SHORTEST = 100_000  # characters of a book


def plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="books.py", description=__doc__.split("\n")[0])
    parser.add_argument("clone", type=Path, help="The repository: AUTHOR/TITLE.md")
    parser.add_argument("out", type=Path, help="Folder for AUTHOR__TITLE.txt")
    return parser


def command(args: Any) -> None:
    books = sorted(args.clone.glob("*/*.md"))
    if not books:
        raise AllMemError(f"{args.clone} has no AUTHOR/TITLE.md")
    args.out.mkdir(parents=True, exist_ok=True)
    written = 0
    for book in books:
        text = book.read_text("utf-8", "replace")
        if len(text) >= SHORTEST:
            name = f"{plain(book.parent.name)}__{plain(book.stem)}.txt"
            (args.out / name).write_text(text)
            written += 1
    print(f"{written} books in {args.out}")


if __name__ == "__main__":
    run(configure_parser(), command)
