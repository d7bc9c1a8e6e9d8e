"""List the commands."""

import sys

from .version import __version__

COMMANDS = {
    "allmem_mlx.generate": "read a document and go on from it, or answer about it",
    "allmem_mlx.chat": "talk with a model that remembers what it has read",
    "allmem_mlx.benchmark": "reading speed and memory beside full attention",
    "allmem_mlx.evaluate": "how well a model remembers, beside the controls",
    "allmem_mlx.distill": "train the memory of a converted model",
    "allmem_mlx.convert": "convert a pretrained model",
}


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    for name, purpose in COMMANDS.items():
        print(f"python -m {name:<22} {purpose}")


if __name__ == "__main__":
    main()
