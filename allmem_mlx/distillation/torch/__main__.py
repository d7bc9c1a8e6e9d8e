"""Distill a memory in PyTorch: forward KL to the frozen model's own full attention.

    python -m allmem_mlx.distillation.torch --model FOLDER --data FOLDER --out FOLDER

After an interruption the same command continues. `torchrun --nproc-per-node N -m
allmem_mlx.distillation.torch` shares the documents of a step among N processes.
"""

import sys
from datetime import timedelta
from typing import Any

try:
    from torch import distributed
except ImportError:
    sys.exit("this needs PyTorch: pip install 'allmem-mlx[torch]'")

from ...cli.run import ArgumentParser, run
from ..recipe import Recipe, add_minutes, add_settings, settings_of
from ..run import Run
from .trainer import Settings, TorchTrainer


def setup_arg_parser() -> ArgumentParser:
    prog = "python -m allmem_mlx.distillation.torch"
    parser = ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    add_settings(parser, Settings, Recipe)
    add_minutes(parser)
    return parser


def distill(args: Any) -> None:
    if distributed.is_torchelastic_launched():
        # The first process evaluates and collects answers while the others wait.
        distributed.init_process_group(timeout=timedelta(days=1))
    trainer = TorchTrainer(settings_of(args, Settings), settings_of(args, Recipe))
    Run(trainer).train(args.minutes)
    if trainer.leads:
        print(f"Saved the memory to {trainer.folder}; convert it with --torch-path")


if __name__ == "__main__":
    run(setup_arg_parser(), distill)
