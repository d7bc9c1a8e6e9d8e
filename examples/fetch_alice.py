"""Fetches the first seven chapters of Alice's Adventures in Wonderland (about 20,000
tokens, public domain) out of the source archive of the PyPI package ``brotli``, which
carries the book as test data.

    python examples/fetch_alice.py alice.txt
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = "brotli==1.2.1"
MEMBER = "brotli-1.2.1/tests/testdata/alice29.txt"
END = b"CHAPTER VIII"


def main(destination: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet"]
        options = ["--no-deps", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([*pip, *options, REQUIREMENT], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            book = member.read()
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(book[: book.index(END)].rstrip() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
