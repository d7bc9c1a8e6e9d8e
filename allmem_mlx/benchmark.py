"""Reading and decoding speed and memory, beside window + sinks and full attention.

All have the same weights and take turns in one process. --soak reads a long text
instead, and monitors likelihood, norms and memory.
"""

import argparse
from pathlib import Path

from .cli.flags import add_sizes, sizes
from .cli.report import add_output, check_output, machine, write_output
from .cli.run import ArgumentParser, run
from .errors import SettingError


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx benchmark", description=__doc__)
    add = parser.add_argument
    add("--model", help="Model folder. Default: SmolLM2-135M-Instruct")
    add(
        "--prompt-tokens",
        "-p",
        type=int,
        nargs="+",
        default=[1024, 2048, 4096, 8192],
        help="Lengths of the text. Default: %(default)s",
    )
    add(
        "--generation-tokens",
        "-g",
        type=int,
        default=128,
        help="Tokens to decode after each length. Default: %(default)s",
    )
    add(
        "--num-trials",
        "-n",
        type=int,
        default=3,
        help="Trials. Default: %(default)s",
    )
    add_sizes(parser)
    add(
        "--beside",
        nargs="*",
        choices=("window", "full"),
        default=("window", "full"),
        help="Comparisons: window + sinks, full attention, or none. Default: both",
    )
    add("--soak", type=int, metavar="N", help="Read N tokens, and monitor")
    add("--text", type=Path, metavar="FILE", help="The text of --soak. Default: noise")
    add_output(parser)
    return parser


def benchmark(args: argparse.Namespace) -> None:
    if min(*args.prompt_tokens, args.generation_tokens, args.num_trials) < 1:
        raise SettingError("-p, -g and -n must be at least 1")
    if args.text and args.soak is None:
        raise SettingError("--text goes with --soak")
    check_output(args)

    from .benchmarking import results, soak
    from .benchmarking.measure import measure_soak, measure_speed
    from .loading import load

    model, tokenizer = load(args.model, model_config=sizes(args))
    config = model.allmem
    title = (
        f"window {config.window}, sinks {config.sinks}, chunk {config.chunk}, "
        f"{model.dtype}, {machine()}"
    ).replace("mlx.core.", "")
    if model.memory_is_off:
        title += ", memory: none"
    measure, plot = measure_speed, results.plot
    if args.soak is not None:
        measure, plot = measure_soak, soak.plot
    write_output(args, measure(args, model, tokenizer, title), plot)


def main() -> None:
    run(setup_arg_parser(), benchmark)


if __name__ == "__main__":
    main()
