"""Pack a distilled memory into a small file, as the embedded default model's is.

python examples/distill_pytorch/pack.py RUN FILE
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.packed_memory import pack


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="pack.py", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="Folder that train.py wrote")
    parser.add_argument("file", type=Path, help="File to write (.safetensors)")
    return parser


def command(args: Any) -> None:
    memory: Any = mx.load(str(args.run / "memory.safetensors"))
    block = json.loads((args.run / "config.json").read_text())["allmem"]
    pack(memory, block, args.file)
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(configure_parser(), command)
