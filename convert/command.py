"""Convert a pretrained model to an AllMem model folder."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allmem_mlx.cli.flags import add_sizes, flag, sizes
from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import UPDATES, VALUES
from allmem_mlx.errors import SettingError
from allmem_mlx.gguf_names import check_file

DTYPES = ("float16", "bfloat16", "float32")
Q_MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")
FORM = (
    "heads",
    "head_dim",
    "hidden_dim",
    "learning_rate",
    "output_eps",
    "values",
    "updates",
    "layers",
)


def configure_parser() -> argparse.ArgumentParser:
    """The parser; flags that mlx-lm has too are the same."""
    parser = ArgumentParser(prog="allmem_mlx convert", description=__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--hf-path",
        "--model",
        metavar="FOLDER_OR_REPO",
        help="Hugging Face or mlx-lm model folder, or ORG/NAME of the Hugging Face hub",
    )
    source.add_argument("--gguf", metavar="FILE", help="GGUF file")
    add("--revision", help="Branch, tag or commit of the hub repository. Default: main")
    add("--mlx-path", help="Folder to create. Default: mlx_model")
    add("--dtype", choices=DTYPES, help="Type of the weights. Default: the source's")
    add("-q", "--quantize", action="store_true", help="Quantise the base model")
    add("--q-group-size", type=int, help="Group size for quantization")
    add("--q-bits", type=int, help="Bits per weight for quantization")
    add("--q-mode", default="affine", choices=Q_MODES, help="Quantization mode")
    add(
        "--torch-path",
        metavar="PATH",
        help="File or folder of memory weights distilled in PyTorch",
    )
    add(
        "--export-torch",
        metavar="PATH",
        help="Write the memory of an AllMem --model for PyTorch instead of converting",
    )
    add("--upload-repo", metavar="ORG/NAME", help="Hub repository to upload to")
    add_sizes(parser)
    add = parser.add_argument_group("form of a memory to be trained").add_argument
    add("--heads", type=int, help="Heads. Default: the base's key-value heads")
    add("--head-dim", type=int, help="Width of a head. Default: 64")
    add("--hidden-dim", type=int, help="Hidden units of a head. Default: 128")
    add("--learning-rate", type=float, help="Initial learning rate. Default: 0.2")
    add("--output-eps", type=float, help="Epsilon of the output norm. Default: 1e-6")
    add("--values", choices=VALUES, help="Source of the values. Default: hidden")
    add("--updates", choices=UPDATES, help="Matrices trained by reading. Default: all")
    add(
        "--layers",
        type=int,
        nargs="+",
        metavar="N",
        help="Layers with a memory; -1 is the last. Default: all",
    )
    return parser


def command(args: argparse.Namespace) -> None:
    if not args.quantize and (args.q_bits or args.q_group_size):
        raise SettingError("--q-bits and --q-group-size need -q")
    if args.export_torch is not None:
        export(args)
        return
    if args.gguf:
        check_file(Path(args.gguf))
    from . import convert

    folder = args.mlx_path or "mlx_model"
    convert(
        args.hf_path or args.gguf,
        folder,
        dtype=args.dtype,
        quantize=args.quantize,
        q_bits=args.q_bits,
        q_group_size=args.q_group_size,
        q_mode=args.q_mode,
        torch_path=args.torch_path,
        revision=args.revision,
        upload_repo=args.upload_repo,
        **sizes(args, *FORM),
    )
    print(f"Saved the model to {folder}")
    print(*overview(folder, args.torch_path), sep="\n")


def overview(folder: str, memory: str | None) -> Iterator[str]:
    """What a new model is and needs, and how to go on with it, in lines.

    Args:
        folder (str): the model.
        memory (str): where its memory was imported from, if it was.
    """
    from allmem_mlx.benchmarking.overview import Overview, memory_of, reading_command
    from allmem_mlx.benchmarking.room import Machine
    from allmem_mlx.hub import name_of
    from allmem_mlx.model_folder import load_weights

    model: Any = load_weights(Path(folder), {"model_file": None}, lazy=True)[0]
    model.eval()
    source = None if memory is None else name_of(Path(memory))
    yield from Overview.of(model, memory_of(model), Machine.this(), source).lines()
    yield f"Go on with: {reading_command(folder)}"


def export(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        used = name in ("hf_path", "export_torch", "debug")
        if not used and value != configure_parser().get_default(name):
            raise SettingError(f"--export-torch does not go with {flag(name)}")
    from .torch_export import export_torch

    export_torch(args.hf_path, args.export_torch)
    print(f"Saved the memory to {args.export_torch}")


def main() -> None:
    run(configure_parser(), command)
