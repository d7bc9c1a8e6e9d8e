"""Distill a memory: train it, with its model frozen, towards the model's own full
attention.

The result is a folder for --adapter-path, also of mlx-lm's commands; `mlx_lm.fuse`
makes a model folder of it. After an interruption the same command continues.
"""

from typing import Any

from .cli.run import ArgumentParser, run
from .distillation.mlx.trainer import MLXTrainer, Settings
from .distillation.recipe import Recipe, add_minutes, add_settings, settings_of
from .distillation.run import Run


def setup_arg_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx distill", description=__doc__)
    add_settings(parser, Settings, Recipe)
    add_minutes(parser)
    return parser


def distill(args: Any) -> None:
    trainer = MLXTrainer(settings_of(args, Settings), settings_of(args, Recipe))
    Run(trainer).train(args.minutes)
    print(f"Saved the memory to {trainer.folder}; use it with --adapter-path")


def main() -> None:
    run(setup_arg_parser(), distill)


if __name__ == "__main__":
    main()
