"""How well a model remembers: likelihood by position, recall by generation, and public
long-context suites.

Every table has the same columns: full attention; window + sinks, without memory;
AllMem; and three controls, a memory that is never written, the memory of another
document, and a window enlarged to the bytes of window and memory.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .command import ArgumentParser, add_model, add_sizes, load_model, run
from .errors import AllMemError, SettingError
from .output import add_output, check_output, panels, write_output

TASKS = ("passkey", "mqar", "facts")
SUITES = ("longbench", "infinitebench", "lveval", "ruler")
DISTANCES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

# Flags that belong to one thing that is measured.
FLAGS = {
    "text": ("tokens",),
    "recall": ("distances", "samples"),
    "suite": ("data", "limit", "max_length"),
}
DEFAULTS = {"tokens": 8192, "distances": DISTANCES, "samples": 8, "seed": 0}
SMALLEST = {"tokens": 2, "samples": 1, "limit": 1, "max_length": 2, "seed": 0}


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.evaluate", description=__doc__)
    add = parser.add_argument
    add_model(parser)
    add_sizes(parser)
    add(
        "--text",
        nargs="+",
        metavar="PATH",
        help="Text files, or folders of *.txt: what likelihood is measured on, and "
        "where --recall facts plants its facts",
    )
    add("--tokens", type=int, metavar="N", help="Tokens of each text. Default: 8192")
    add("--recall", nargs="+", choices=TASKS, help="Measure recall by generation")
    add(
        "--distances",
        type=int,
        nargs="+",
        metavar="N",
        help="Tokens between what is to be recalled and the question. Default: 256, "
        "512, ... 32768",
    )
    add("--samples", type=int, metavar="N", help="Documents of each kind. Default: 8")
    add("--suite", choices=SUITES, help="Score a public suite")
    add("--data", nargs="+", metavar="PATH", help="Its files, or folders of them")
    add("--limit", type=int, metavar="N", help="First examples of each subset only")
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="Tokens of a prompt; the middle of a longer one is left out",
    )
    add("--seed", type=int, metavar="N", help="Of all that is drawn. Default: 0")
    add_output(parser)
    return parser


def check_args(args: argparse.Namespace) -> str:
    """Refuses what cannot be obeyed, before the model is loaded.

    Returns:
        str: what is to be measured, a key of :data:`FLAGS`.
    """
    asked = [name for name in ("suite", "recall", "text") if getattr(args, name)]
    if not asked:
        raise SettingError("nothing to measure: give --text, --recall or --suite")
    what = asked[0]
    if what == "suite" and len(asked) > 1:
        raise SettingError(f"--{asked[1]} cannot be used with --suite")
    if what == "recall" and ("facts" in args.recall) != (args.text is not None):
        raise SettingError("--recall facts needs --text, and no other task does")
    for other, flags in FLAGS.items():
        for flag in flags:
            if other != what and getattr(args, flag) is not None:
                raise SettingError(
                    f"--{flag.replace('_', '-')} cannot be used with --{what}"
                )
    if what == "suite" and args.data is None:
        raise SettingError("--suite needs --data")
    if what == "suite" and args.plot is not None:
        raise SettingError("--plot cannot be used with --suite: it has no curves")
    for flag, smallest in SMALLEST.items():
        value = getattr(args, flag)
        if value is not None and value < smallest:
            raise SettingError(
                f"--{flag.replace('_', '-')} is {value}; it must be at least {smallest}"
            )
    if min(args.distances or DISTANCES) < 1:
        raise SettingError("--distances must be at least 1")
    check_output(args)
    for flag, value in DEFAULTS.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return what


@contextmanager
def progress(total: int | None) -> Iterator[Any]:
    """A bar on stderr, on a terminal only, that is told how many tokens were read."""
    from tqdm import tqdm

    with tqdm(total=total, unit=" tokens", leave=False, disable=None) as bar:
        yield bar.update


def measure_text(args: argparse.Namespace) -> tuple:
    """Likelihood by position: the model, the result, its table and its curves."""
    from .evaluation.texts import read_text, text_files

    files = text_files(args.text)
    model, tokenizer = load_model(args)

    from .conversation import Template
    from .evaluation import likelihood, report
    from .evaluation.systems import systems

    window = model.allmem.window
    start = Template.plain(tokenizer).start
    texts = [read_text(file, tokenizer, args.tokens) for file in files]
    documents = [(start + text.tokens)[: args.tokens] for text in texts]
    for text, tokens in zip(texts, documents, strict=True):
        if len(tokens) <= window:
            raise AllMemError(
                f"{str(text.file)!r} gives {len(tokens)} tokens; more than the window, "
                f"{window}, are needed: a longer text, more --tokens or a smaller "
                "--window"
            )
    if len(set(map(tuple, documents))) < max(2, len(documents)):
        raise AllMemError(
            "one control reads the memory of another document; give at least two "
            "texts, all of them different"
        )
    compared = systems(model)
    found: dict[str, list[Any]] = {system.name: [] for system in compared}
    with progress(len(compared) * sum(map(len, documents))) as done:
        for i, tokens in enumerate(documents):
            other = documents[(i + 1) % len(documents)]
            for system in compared:
                losses = likelihood.losses(system, model, tokens, other, done)
                found[system.name].append(losses)
    summary = likelihood.summary(found, window, args.seed)
    for document, text in zip(summary["documents"], texts, strict=True):
        document |= text.record()
    return model, summary, report.likelihood(summary), report.likelihood_panel(summary)


def measure_recall(args: argparse.Namespace) -> tuple:
    """Recall by generation: the model, the result, its table and its curves."""
    from .evaluation.texts import read_text, text_files

    files = text_files(args.text or [])
    model, tokenizer = load_model(args)

    from .evaluation import recall, report

    books = [read_text(file, tokenizer) for file in files]
    groups = [
        group
        for name in args.recall
        for group in recall.make_tasks(
            name, tokenizer, args.distances, args.samples, args.seed, books
        )
    ]
    with progress(None) as done:
        answers = recall.recall(model, tokenizer, groups, done)
    summary = recall.summary(answers)
    summary["documents"] = [book.record() for book in books]
    return model, summary, report.recall(summary), report.recall_panel(summary)


def measure_suite(args: argparse.Namespace) -> tuple:
    """A public suite: the model, the result and its table; it has no curves."""
    from .evaluation import report
    from .evaluation.suites import run as suites

    examples = suites.load(args.suite, args.data, args.limit)
    model, tokenizer = load_model(args)
    with progress(None) as done:
        answers = suites.run(model, tokenizer, examples, args.max_length, done)
    summary = suites.summary(answers, args.seed)
    return model, summary, report.suite(summary), None


def evaluate(args: argparse.Namespace) -> None:
    what = check_args(args)

    measure = {"text": measure_text, "recall": measure_recall, "suite": measure_suite}
    model, summary, table, panel = measure[what](args)

    import mlx.core as mx

    from . import state as states
    from .evaluation.systems import matched_window, memory_is_off
    from .version import __version__

    config, matched, off = model.allmem, matched_window(model), memory_is_off(model)
    sizes_text = (
        f"window {config.window}, sinks {config.sinks}, chunk {config.chunk}, matched "
        f"window {matched}"
    )
    print(f"{sizes_text}, seed {args.seed}, {mx.default_device()}")
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
    write_output(args, result, lambda: panels([panel], sizes_text))


def main() -> None:
    run(setup_arg_parser(), evaluate)


if __name__ == "__main__":
    main()
