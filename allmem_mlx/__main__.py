"""Run a command, or list them."""

import difflib
import importlib
import sys

from .version import __version__

COMMANDS = {
    "generate": "read a document and go on from it, or answer about it",
    "chat": "talk with a model that remembers what it has read",
    "summarise": "summarise a document, part by part and as a whole",
    "search": "search what was read for words, without a model",
    "benchmark": "reading speed and memory beside full attention",
    "cost": "what a model costs by arithmetic, at any length",
    "evaluate": "how well a model remembers, beside the controls",
    "distill": "train the memory of a converted model",
    "convert": "convert a pretrained model",
}
MODULES = {"convert": "convert.command"}


def main() -> None:
    name, *rest = sys.argv[1:] or ["-h"]
    if name == "--version":
        print(__version__)
    elif name in ("-h", "--help", "help"):
        for command, purpose in COMMANDS.items():
            print(f"python -m allmem_mlx.{command:<11} {purpose}")
    else:
        # As its module is called, or its script.
        command = name.removeprefix("allmem_mlx.").removesuffix(".py")
        if command not in COMMANDS:
            sys.exit(_unknown(name))
        sys.argv = [f"allmem_mlx.{command}", *rest]
        module = f"{__package__}.{MODULES.get(command, command)}"
        importlib.import_module(module).main()


def _unknown(name: str) -> int:
    """Says so of a command that there is not, and which is near."""
    near = difflib.get_close_matches(name.lower(), COMMANDS, 1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    print(f"allmem_mlx: error: there is no command {name!r}; {meant}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
