"""The command ``allmem_mlx``, which runs the others."""

import difflib
import importlib
import sys
from typing import NoReturn

from .version import __version__

# The module and the purpose of each command.
COMMANDS = {
    "generate": ("generate", "read a document and answer questions, or write on"),
    "chat": ("chat", "talk with a model that remembers what it has read"),
    "summarise": ("summarise", "summarise a document, part by part and as a whole"),
    "search": ("search", "search the documents of an archive, without a model"),
    "convert": ("convert.command", "convert a pretrained model"),
    "distill": ("distill", "train the memory of a converted model"),
    "evaluate": ("evaluate", "measure how well a model remembers"),
    "benchmark": ("benchmark", "measure speed and memory beside full attention"),
    "cost": ("cost", "count operations and memory at any length"),
}


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    # Also as its module is called, or its file.
    command = name.removeprefix("allmem_mlx.").removesuffix(".py")
    if name == "--version":
        print(__version__)
    elif name in ("-h", "--help", "help"):
        _print_help()
    elif command in COMMANDS:
        module, _ = COMMANDS[command]
        sys.argv = [f"allmem_mlx {command}", *rest]
        importlib.import_module(f"{__package__}.{module}").main()
    else:
        _refuse(name)


def _print_help() -> None:
    print("usage: allmem_mlx <command> ...\n       allmem_mlx --version\n\ncommands:")
    for command, (_, purpose) in COMMANDS.items():
        print(f"  {command:<10} {purpose}")
    print("\nallmem_mlx <command> --help lists the options of a command.")


def _refuse(name: str) -> NoReturn:
    """Exits with an error for an unknown command."""
    near = difflib.get_close_matches(name.lower(), COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
    print(f"allmem_mlx: error: unknown command {name!r}; {hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
