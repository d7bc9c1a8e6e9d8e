"""Cuts a converted model down to its last layers.

    python examples/experiments/shallow_model.py NEW_FOLDER --layers 2
    allmem_mlx benchmark --model NEW_FOLDER --soak 1000000

The text of such a model makes no sense, but it reads a million tokens in a short time.
"""

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from allmem_mlx import load
from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.default_model import default_model
from allmem_mlx.errors import SettingError
from allmem_mlx.families import global_layers
from allmem_mlx.files import creating
from allmem_mlx.model_folder import read_config


def shallow_config(config: dict, layers: int) -> dict:
    """The configuration of the last layers alone."""
    first = config["num_hidden_layers"] - layers
    allmem = AllMemConfig.from_dict(config["allmem"])
    candidates = global_layers(config)
    last = [i for i in candidates if i >= first]
    hybrids = [last.index(i) for i in allmem.memory_layers(candidates) if i in last]
    allmem = replace(allmem, layers=hybrids)
    shallow = {**config, "num_hidden_layers": layers, "allmem": asdict(allmem)}
    if config.get("layer_types"):
        shallow["layer_types"] = config["layer_types"][-layers:]
    return shallow


def command(args: argparse.Namespace) -> None:
    source = args.model or default_model()
    config = read_config(source)
    if not 1 <= args.layers <= config["num_hidden_layers"]:
        raise SettingError(f"--layers must be 1 to {config['num_hidden_layers']}")
    model, _ = load(source)
    model.model.layers = model.model.layers[-args.layers :]
    weights: Any = dict(tree_flatten(model.parameters()))
    text = json.dumps(shallow_config(config, args.layers), indent=2)
    with creating(args.folder, Path.mkdir) as folder:
        to = str(folder / "model.safetensors")
        mx.save_safetensors(to, weights, {"format": "mlx"})
        (folder / "config.json").write_text(text)
        for pattern in ("token*", "*.jinja", "allmem.py", "generation_config.json"):
            for file in source.glob(pattern):
                shutil.copy(file, folder)


if __name__ == "__main__":
    parser = ArgumentParser(prog="shallow_model.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, help="Folder to create")
    add("--model", type=Path, help="Model folder. Default: the embedded one")
    add("--layers", type=int, default=2, help="Layers to keep. Default: %(default)s")
    run(parser, command)
