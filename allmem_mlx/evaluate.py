"""Likelihood by position, recall by generation, and public long-context suites.

Every table has the same columns: full attention; window + sinks, without memory;
AllMem; and three controls, a memory that is never written, the memory of another
document, and a window enlarged to the bytes of window and memory.
"""

import argparse
from dataclasses import asdict

from .cli.flags import add_model, add_sizes
from .cli.report import add_output, check_output, machine, write_output
from .cli.run import ArgumentParser, run
from .errors import SettingError

TASKS = ("passkey", "mqar", "facts")
PLANTED = ("facts", "paraphrase", "two", "latest", "unanswerable")
SUITES = ("longbench", "infinitebench", "lveval", "ruler")

# The flags of one measurement only.
FLAGS = {
    "text": ("tokens",),
    "recall": ("distances", "samples", "states", "search_only"),
    "suite": ("data", "limit", "max_length"),
}
DEFAULTS = {
    "tokens": 8192,
    "distances": (256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    "samples": 8,
    "seed": 0,
}
DEFAULTS_WITH_PASSAGES = {"distances": (2048, 8192, 32768, 131072), "samples": 24}
MINIMUM = {
    "tokens": 2,
    "samples": 1,
    "limit": 1,
    "max_length": 2,
    "passages": 1,
    "seed": 0,
}


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx evaluate", description=__doc__)
    add = parser.add_argument
    add_model(parser)
    add_sizes(parser)
    add(
        "--text",
        nargs="+",
        metavar="PATH",
        help="Text files, or folders of *.txt: the documents of the likelihood, or of "
        "--recall facts",
    )
    add("--tokens", type=int, metavar="N", help="Tokens of each text. Default: 8192")
    add(
        "--recall",
        nargs="+",
        choices=tuple(dict.fromkeys(TASKS + PLANTED)),
        metavar="TASK",
        help=f"Measure recall by generation: {', '.join(TASKS)}; with --passages "
        + ", ".join(PLANTED),
    )
    add(
        "--passages",
        type=int,
        metavar="N",
        help="Look up N passages for each question. Recall is then measured on all "
        "texts but the last, joined; the last one is another document",
    )
    add(
        "--states",
        metavar="FOLDER",
        help="With --passages, keep states and answers here, so that a run can be "
        "resumed",
    )
    add(
        "--search-only",
        action="store_true",
        default=None,
        help="With --passages, look up passages only; the model answers nothing",
    )
    add(
        "--distances",
        type=int,
        nargs="+",
        metavar="N",
        help="Tokens between a fact and its question. Default: 256, 512, ... 32768; "
        "with --passages 2048, 8192, 32768, 131072",
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help="Documents of each kind (default: 8); with --passages, facts at each "
        "distance (default: 24)",
    )
    add("--suite", choices=SUITES, help="Score a public suite")
    add(
        "--data",
        nargs="+",
        metavar="PATH",
        help="The files of the suite, or folders of them",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help="Only the first N examples of each subset",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="Cut prompts to N tokens, by leaving out their middle",
    )
    add("--seed", type=int, metavar="N", help="Random seed. Default: 0")
    add_output(parser)
    return parser


def check_args(args: argparse.Namespace) -> str:
    """Refuses what cannot be obeyed, before the model is loaded, and sets defaults.

    Returns:
        str: the measurement, a key of :data:`FLAGS`.
    """
    asked = [name for name in ("suite", "recall", "text") if getattr(args, name)]
    if not asked:
        raise SettingError("nothing to measure: give --text, --recall or --suite")
    what, *others = asked
    if what == "suite":
        _check_suite(args, others)
    elif what == "recall":
        _check_recall(args)
    elif args.passages is not None:
        raise SettingError("--passages cannot be used with --text alone")
    for measurement, names in FLAGS.items():
        for name in names:
            if measurement != what and getattr(args, name) is not None:
                raise SettingError(f"{_flag(name)} cannot be used with --{what}")
    for name, minimum in MINIMUM.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise SettingError(
                f"{_flag(name)} is {value}; it must be at least {minimum}"
            )
    if min(args.distances or (1,)) < 1:
        raise SettingError("--distances must be at least 1")
    check_output(args)
    defaults = DEFAULTS
    if args.passages is not None:
        defaults = DEFAULTS | DEFAULTS_WITH_PASSAGES
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return what


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_suite(args: argparse.Namespace, others: list[str]) -> None:
    if others:
        raise SettingError(f"--{others[0]} cannot be used with --suite")
    if args.data is None:
        raise SettingError("--suite needs --data")
    if args.suite == "ruler" and args.passages is not None:
        raise SettingError("--passages cannot be used with --suite ruler")
    if args.plot is not None:
        raise SettingError("--plot cannot be used with --suite: it has no curves")


def _check_recall(args: argparse.Namespace) -> None:
    with_passages = args.passages is not None
    for task in args.recall:
        if task not in (PLANTED if with_passages else TASKS):
            rule = "cannot be used with" if with_passages else "needs"
            raise SettingError(f"--recall {task} {rule} --passages")
    if with_passages:
        if args.text is None:
            raise SettingError(f"--recall {args.recall[0]} needs --text")
        if args.search_only and args.states is not None:
            raise SettingError("--states cannot be used with --search-only")
        if args.search_only and set(args.recall) == {"unanswerable"}:
            raise SettingError("--recall unanswerable has nothing to be found")
        return
    for name in ("states", "search_only"):
        if getattr(args, name) is not None:
            raise SettingError(f"{_flag(name)} needs --passages")
    if ("facts" in args.recall) != (args.text is not None):
        raise SettingError("--recall facts needs --text, and no other task does")


def evaluate(args: argparse.Namespace) -> None:
    what = check_args(args)

    from . import state as states
    from .evaluation.measure import MEASURES
    from .evaluation.plots import plot
    from .variants import matched_window
    from .version import __version__

    model, summary, table = MEASURES[what](args)
    config, matched, off = model.allmem, matched_window(model), model.memory_is_off
    print(
        f"window {config.window}, sinks {config.sinks}, chunk {config.chunk}, matched "
        f"window {matched}, seed {args.seed}, {machine()}"
    )
    if off:
        print(
            "alpha is 0 in every layer: AllMem is window + sinks, and so are a memory "
            "never written and that of another document"
        )
    print(table)
    result = {
        "allmem_mlx": __version__,
        "measured": args.suite or ("recall" if what == "recall" else "likelihood"),
        "model": args.model,
        "fingerprint": states.fingerprint(model),
        "allmem": asdict(config),
        "matched window": matched,
        "alpha is 0": off,
        "seed": args.seed,
        **summary,
    }
    write_output(args, result, plot)


def main() -> None:
    run(setup_arg_parser(), evaluate)


if __name__ == "__main__":
    main()
