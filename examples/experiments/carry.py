"""Packs a distillation into one folder, for a machine with PyTorch and transformers
alone: the code, the base in bfloat16, token ids and the memory to start from.

    python examples/experiments/carry.py FOLDER --model BASE --data TEXTS
        [--tokens 25e6] [--memory RUN] [--held-out ...] [--validation ...]
    cd FOLDER && ./train --out RUN [flags of allmem_mlx.distillation.torch]

No file is larger than 60 MB. `./train` with the same flags goes on from the checkpoint;
`--minutes 9` stops in time.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

import allmem_mlx
from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.distillation.sources import Texts, open_sources
from allmem_mlx.distillation.torch.hybrid import load_base
from allmem_mlx.errors import AllMemError

LARGEST = "60MB"
PARTS, PART = 20, 4096  # files of a kind, at most; tokens of one, at least


def pack(source: Texts, folder: Path, name: str, tokens: int) -> None:
    """Writes so many token ids of all kinds."""
    of_kind = tokens // len(source.kinds)
    parts = min(PARTS, max(1, of_kind // PART))
    for kind in source.kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(parts):
            ids = np.array(source.passage(of_kind // parts, kind))
            small = np.uint16 if ids.max() < 2**16 else np.uint32
            np.save(folder / kind / f"{name}-{i:02}.npy", ids.astype(small))


def command(args: argparse.Namespace) -> None:
    model, tokenizer = load_base(args.model, "bfloat16")
    sources = open_sources(args.data, args.held_out, args.validation, tokenizer, 0)
    args.folder.mkdir(parents=True)
    package = Path(allmem_mlx.__file__).parent
    ignored = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(package, args.folder / "allmem_mlx", ignore=ignored)
    model.save_pretrained(args.folder / "base", max_shard_size=LARGEST)
    tokenizer.save_pretrained(args.folder / "base")
    for source, name, tokens in zip(
        sources, ("train", "valid"), (args.tokens, args.tokens / 20), strict=True
    ):
        if not isinstance(source, Texts):
            raise AllMemError(f"{args.data}: only text files can be packed")
        pack(source, args.folder / "data", name, int(tokens))
    flags = "--model base --data data"
    if args.memory:
        shutil.copytree(args.memory, args.folder / "memory")
        (args.folder / "memory" / "checkpoint.pt").unlink(missing_ok=True)
        flags += " --memory memory"
    script = args.folder / "train"
    script.write_text(
        f'#!/bin/sh\nexec python3 -m allmem_mlx.distillation.torch {flags} "$@"\n'
    )
    script.chmod(0o755)


if __name__ == "__main__":
    parser = ArgumentParser(prog="carry.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("folder", type=Path, help="Folder to create")
    add("--model", required=True, help="Folder of the base model")
    add("--data", required=True, help="Folder of texts")
    add("--tokens", type=float, default=25e6, help="To carry. Default: %(default)s")
    add("--memory", type=Path, help="Folder of a run to start from")
    add("--held-out", default="", help="Beginnings of names that are left out")
    add("--validation", default="valid", help="Beginnings of names for validation")
    run(parser, command)
