"""Prepares public-domain books to train and to evaluate on, one text file each.

    git clone https://github.com/mlschmitt/classic-books-markdown CLONE
    git -C CLONE checkout 944882722e9a96fa6cf2739dc2ea757e101f412f
    python examples/experiments/books.py CLONE BOOKS

The default model was trained on these. Files are named AUTHOR__TITLE.txt.
"""

import re
import sys
from pathlib import Path

SHORTEST = 100_000  # characters; shorter books are left out


def plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


if __name__ == "__main__":
    clone, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for book in sorted(clone.glob("*/*.md")):
        text = book.read_text("utf-8", "replace")
        if len(text) >= SHORTEST:
            name = f"{plain(book.parent.name)}__{plain(book.stem)}.txt"
            (out / name).write_text(text, "utf-8")
            print(out / name)
