"""The cost of a model by arithmetic, at any length: FLOPs, bytes, state, and the speed
that a chip's bandwidth and arithmetic allow. No weights are needed."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cli.flags import add_sizes, sizes
from .cli.report import add_output, check_output, write_output
from .cli.run import ArgumentParser, run
from .errors import SettingError

LENGTHS = [1024, 4096, 8192, 16384, 32768, 65536, 131072]


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx cost", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_CONFIG",
        help="A model folder, converted or not, or a config.json. Default: the "
        "embedded SmolLM2-135M-Instruct",
    )
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=LENGTHS,
        metavar="N",
        help="Tokens. Default: %(default)s",
    )
    add_sizes(parser)
    add_output(parser)
    return parser


def read_config(path: str | None) -> dict[str, Any]:
    """A ``config.json``, of a folder, a file or the default model."""
    from . import model_folder
    from .default_model import default_model
    from .weight_files import read_json

    if path is not None and Path(path).is_file():
        return read_json(Path(path))
    return model_folder.read_config(default_model() if path is None else Path(path))


def cost(args: argparse.Namespace) -> None:
    if min(args.lengths) < 1:
        raise SettingError("--lengths must be at least 1")
    check_output(args)

    from .benchmarking import costs
    from .benchmarking.flops import Sizes

    model = Sizes.of(costs.lazy_model(read_config(args.model), sizes(args)))
    c, longest = model.config, max(args.lengths)
    rows = [costs.costs(model, n) for n in sorted(args.lengths)]
    roofline = costs.roofline(model, longest)
    title = f"window {c.window}, {c.sinks} sinks, chunk {c.chunk}"
    print(
        f"{title}; {c.heads} memory heads of {c.head_dim}, hidden {c.hidden_dim}; "
        f"weights {(model.weights + model.memory_weights) / 1e6:,.1f} MB, of the "
        f"memory {model.memory_weights / 1e6:,.1f} MB"
    )
    print(f"{costs.describe(rows)}\n\n{costs.describe_roofline(roofline, longest)}")
    result = {"title": title, "sizes": asdict(model)}
    write_output(args, result | {"rows": rows, "roofline": roofline}, costs.plot)


def main() -> None:
    run(setup_arg_parser(), cost)


if __name__ == "__main__":
    main()
