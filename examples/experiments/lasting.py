"""Makes a third of the heads of a trained memory last, as those of a new one do.

    python examples/experiments/lasting.py RUN NEW --model FOLDER --data TEXTS
        [--layers=-6,-5,-4,-3,-2,-1] [--validation ...] [--held-out ...]

NEW is a folder for `--memory` of `python -m allmem_mlx.distillation.torch`.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.distillation.initial import calibration, make_lasting
from allmem_mlx.distillation.recipe import whole_numbers
from allmem_mlx.distillation.sources import open_sources
from allmem_mlx.distillation.torch.hybrid import Hybrid, load_base
from allmem_mlx.distillation.torch.measure import measure
from allmem_mlx.distillation.torch.trainer import trained_config


def command(args: argparse.Namespace) -> None:
    model, tokenizer = load_base(args.model, "float32")
    config = replace(trained_config(args.run), updates="down")
    hybrid = Hybrid(model, config)
    source, _ = open_sources(args.data, args.held_out, args.validation, tokenizer, 0)
    layers, _ = measure(hybrid, torch.tensor(calibration(source)))
    memory = load_file(args.run / "memory.safetensors")
    names = [
        x.removesuffix("alpha") for x in hybrid.parameters() if x.endswith("alpha")
    ]
    for i in whole_numbers("--layers", args.layers):
        name = names[i] + "memory."
        projection, value, bias = (
            memory[name + x].numpy()
            for x in ("in_proj.weight", "value_proj.weight", "rate_bias")
        )
        make_lasting(config, layers[i], projection[-5 * config.heads :], bias, value)
    args.new.mkdir(parents=True)
    save_file(memory, args.new / "memory.safetensors")
    text = json.dumps({"allmem": asdict(config)}, indent=2)
    (args.new / "config.json").write_text(text + "\n")


if __name__ == "__main__":
    parser = ArgumentParser(prog="lasting.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", type=Path, help="Folder of a run")
    add("new", type=Path, help="Folder to create")
    add("--model", required=True, help="Folder of the base model")
    add("--data", required=True, help="Folder of texts, to measure the base on")
    add("--layers", default="-6,-5,-4,-3,-2,-1", help="Of those with a memory")
    add("--held-out", default="", help="Beginnings of names that are left out")
    add("--validation", default="valid", help="Beginnings of names for validation")
    run(parser, command)
