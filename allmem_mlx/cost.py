"""The cost of a model by arithmetic, at any length: FLOPs, bytes, state, and the speed
that a chip's bandwidth and arithmetic allow. No weights are needed."""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cli.flags import add_sizes, flag, sizes
from .cli.report import add_output, check_output, write_output
from .cli.run import ArgumentParser, run
from .errors import AllMemError, SettingError, reason

LENGTHS = [1024, 4096, 8192, 16384, 32768, 65536, 131072]


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx cost", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_REPO",
        help="A model folder, converted or not, its config.json, or ORG/NAME of the "
        "Hugging Face hub, of which only config.json is downloaded. Default: the "
        "embedded SmolLM2-135M-Instruct",
    )
    add("--revision", help="Branch, tag or commit of the hub repository. Default: main")
    add(
        "--ram",
        type=float,
        metavar="GB",
        help="Memory of the machine that is to run it. Default: that of this one",
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


@contextmanager
def naming(model: str | None) -> Iterator[None]:
    """Names the model in the errors of its configuration, which are of many kinds if it
    makes no sense."""
    try:
        yield
    except SettingError:
        raise
    except AllMemError as error:
        raise AllMemError(f"{model}: {error}") from None
    except Exception as error:
        raise AllMemError(
            f"{model}: its configuration cannot be used: {reason(error)}"
        ) from error


def find_model(args: argparse.Namespace) -> tuple[Any, bool, str]:
    """The model that the command line names, without weights in memory; whether it was
    converted; and what is known of its memory, see :class:`Overview`."""
    from . import hub, model_folder
    from .benchmarking import costs, overview
    from .config import AllMemConfig
    from .default_model import default_model
    from .files import read_json
    from .model import MODEL_TYPE

    if args.model is None:
        path = default_model()
    else:
        path = hub.resolve_config(args.model, args.revision)
    config = read_json(path) if path.is_file() else model_folder.read_config(path)
    converted = config.get("model_type") == MODEL_TYPE
    if converted and any(path.glob(hub.WEIGHTS[0])):
        with naming(args.model):
            settings = AllMemConfig.from_dict(config.get("allmem"))
        allmem = {**asdict(settings), **sizes(args)}
        overrides = {"allmem": allmem, "model_file": None}
        model: Any = model_folder.load_weights(path, overrides, lazy=True)[0]
        model.eval()
        return model, True, overview.memory_of(model)
    with naming(args.model):
        model = costs.lazy_model(config, sizes(args))
    memory = overview.UNKNOWN if converted else overview.UNTRAINED
    return model, converted, memory


def conversion_command(args: argparse.Namespace, quantize: bool) -> str:
    """What to type next with a base."""
    source = Path(args.model)
    if source.is_file():  # its config.json
        source = source.parent
    words = ["allmem_mlx", "convert", "--hf-path", str(source)]
    if args.revision is not None:
        words += ["--revision", args.revision]
    for name, value in sizes(args).items():
        words += [flag(name), str(value)]
    words += ["-q"] * quantize
    return shlex.join([*words, "--mlx-path", "NEW_FOLDER"])


def systems(memory: str, config: Any) -> str:
    """What is compared below the overview, in a line.

    Args:
        memory (str): what is known of the model's memory, see :class:`Overview`.
        config (AllMemConfig): its form.
    """
    from .benchmarking.overview import TRAINED, UNTRAINED

    form = f"{config.heads} heads of {config.head_dim}, hidden {config.hidden_dim}"
    form += f", chunk {config.chunk}"
    as_it_is = ", as it is now" * (memory == UNTRAINED)
    kind = "its memory" if memory == TRAINED else "a trained memory"
    return f"window + sinks: without a memory{as_it_is}; AllMem: with {kind} ({form})"


def cost(args: argparse.Namespace) -> None:
    if min(args.lengths) < 1:
        raise SettingError("--lengths must be at least 1")
    if args.ram is not None and not 0 < args.ram < 1e6:
        raise SettingError(f"--ram is {args.ram:g}; it must be above 0")
    if args.revision is not None and args.model is None:
        raise SettingError("--revision needs --model ORG/NAME")
    check_output(args)

    from .benchmarking import costs
    from .benchmarking.overview import Overview, reading_command
    from .benchmarking.room import GIB, Machine

    machine = Machine.of(int(args.ram * GIB)) if args.ram else Machine.this()
    model, converted, memory = find_model(args)
    with naming(args.model):
        overview = Overview.of(model, memory, machine)
    print(*overview.lines(), sep="\n")
    if converted:
        print(f"Go on with: {reading_command(args.model)}")
    elif not overview.is_too_large or overview.fits_quantized:
        command = conversion_command(args, overview.is_too_large)
        print(f"Go on with: {command}")
    of, c, longest = overview.sizes, model.allmem, max(args.lengths)
    print(f"\n{systems(memory, c)}")
    rows = [costs.costs(of, n) for n in sorted(args.lengths)]
    roofline = costs.roofline(of, longest)
    print(f"{costs.describe(rows)}\n\n{costs.describe_roofline(roofline, longest)}")
    result = {
        "title": f"window {c.window}, {c.sinks} sinks, chunk {c.chunk}",
        "sizes": asdict(of),
        "overview": overview.record,
        "rows": rows,
        "roofline": roofline,
    }
    write_output(args, result, costs.plot)


def main() -> None:
    run(setup_arg_parser(), cost)


if __name__ == "__main__":
    main()
