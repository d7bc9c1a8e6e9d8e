"""Cut a converted model down to its last layers.

    python examples/shallow_model.py NEW_FOLDER --layers 2

Such a model says little of use. It reads a million tokens in a short time, as
``python -m allmem_mlx.benchmark --model NEW_FOLDER --soak 1000000`` does.
"""

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.convert.new_folder import new_folder
from allmem_mlx.default_model import default_model
from allmem_mlx.errors import SettingError
from allmem_mlx.families import unbounded_layers
from allmem_mlx.model_folder import read_config

PREFIX = "model.layers."


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="shallow_model.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, help="Folder to create")
    add("--model", type=Path, help="Model folder. Default: the embedded one")
    add("--layers", type=int, default=2, help="Layers to keep. Default: %(default)s")
    return parser


def shallow_config(config: dict, layers: int) -> dict:
    """The configuration of the last layers alone."""
    first = config["num_hidden_layers"] - layers
    allmem = AllMemConfig.from_dict(config["allmem"])
    candidates = unbounded_layers(config)
    kept = [i for i in candidates if i >= first]
    hybrids = [kept.index(i) for i in allmem.with_memory(candidates) if i in kept]
    allmem = replace(allmem, layers=hybrids)
    shallow = {**config, "num_hidden_layers": layers, "allmem": asdict(allmem)}
    if config.get("layer_types"):
        shallow["layer_types"] = config["layer_types"][-layers:]
    return shallow


def command(args: argparse.Namespace) -> None:
    import mlx.core as mx

    source = args.model or default_model()
    config = read_config(source)
    first = config["num_hidden_layers"] - args.layers
    if args.layers < 1 or first < 0:
        raise SettingError(f"--layers must be 1 to {config['num_hidden_layers']}")
    weights = {}
    for file in sorted(source.glob("model*.safetensors")):
        loaded: Any = mx.load(str(file))
        for name, x in loaded.items():
            if name.startswith(PREFIX):
                layer, _, rest = name.removeprefix(PREFIX).partition(".")
                if int(layer) < first:
                    continue
                name = f"{PREFIX}{int(layer) - first}.{rest}"
            weights[name] = x
    text = json.dumps(shallow_config(config, args.layers), indent=2)
    with new_folder(args.folder) as folder:
        file = str(folder / "model.safetensors")
        mx.save_safetensors(file, weights, {"format": "mlx"})
        (folder / "config.json").write_text(text)
        for pattern in ("token*", "*.jinja", "allmem.py", "generation_config.json"):
            for file in source.glob(pattern):
                shutil.copy(file, folder)


if __name__ == "__main__":
    run(configure_parser(), command)
