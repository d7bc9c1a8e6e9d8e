"""How well a model remembers: likelihood by position, recall by generation, and public
long-context suites.

Every table has the same columns: full attention; window + sinks, without memory;
AllMem; and three controls, a memory that is never written, the memory of another
document, and a window enlarged to the bytes of window and memory.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cli.flags import add_model, add_sizes, load_model
from .cli.report import add_output, check_output, panels, write_output
from .cli.run import ArgumentParser, run
from .errors import AllMemError, SettingError

TASKS = ("passkey", "mqar", "facts")
PLANTED = ("facts", "paraphrase", "two", "latest", "unanswerable")
SUITES = ("longbench", "infinitebench", "lveval", "ruler")
DISTANCES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

# Flags that belong to one thing that is measured.
FLAGS = {
    "text": ("tokens",),
    "recall": ("distances", "samples", "states", "search_only"),
    "suite": ("data", "limit", "max_length"),
}
DEFAULTS = {"tokens": 8192, "distances": DISTANCES, "samples": 8, "seed": 0}
SMALLEST = {
    "tokens": 2,
    "samples": 1,
    "limit": 1,
    "max_length": 2,
    "passages": 1,
    "seed": 0,
}
# With --passages.
PLANTED_DEFAULTS = {"distances": (2048, 8192, 32768, 131072), "samples": 24}


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
        help="Passages to look up for a question. Recall is then measured on all texts "
        "but the last, one after the other, and the last one is another document",
    )
    add(
        "--states",
        metavar="FOLDER",
        help="With --passages, where states and answers are kept, so that a run goes "
        "on where one was stopped",
    )
    add(
        "--search-only",
        action="store_true",
        default=None,
        help="With --passages, only look up; nothing is read or asked",
    )
    add(
        "--distances",
        type=int,
        nargs="+",
        metavar="N",
        help="Tokens between what is to be recalled and the question. Default: 256, "
        "512, ... 32768; with --passages 2048, 8192, 32768, 131072",
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help="Documents of each kind. Default: 8. With --passages facts at each "
        "distance. Default: 24",
    )
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
    if what == "recall":
        _check_recall(args)
    for other, flags in FLAGS.items():
        for flag in flags:
            if other != what and getattr(args, flag) is not None:
                raise SettingError(
                    f"--{flag.replace('_', '-')} cannot be used with --{what}"
                )
    if what == "text" and args.passages is not None:
        raise SettingError("--passages cannot be used with --text alone")
    if what == "suite" and args.data is None:
        raise SettingError("--suite needs --data")
    if args.suite == "ruler" and args.passages is not None:
        raise SettingError("--passages cannot be used with --suite ruler")
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
    defaults = DEFAULTS | (PLANTED_DEFAULTS if args.passages is not None else {})
    for flag, value in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return what


def _check_recall(args: argparse.Namespace) -> None:
    if args.passages is None:
        for task in args.recall:
            if task not in TASKS:
                raise SettingError(f"--recall {task} needs --passages")
        for flag in ("states", "search_only"):
            if getattr(args, flag) is not None:
                raise SettingError(f"--{flag.replace('_', '-')} needs --passages")
        if ("facts" in args.recall) != (args.text is not None):
            raise SettingError("--recall facts needs --text, and no other task does")
        return
    for task in args.recall:
        if task not in PLANTED:
            raise SettingError(f"--recall {task} cannot be used with --passages")
    if args.text is None:
        raise SettingError(f"--recall {args.recall[0]} needs --text")
    if args.search_only and args.states is not None:
        raise SettingError("--states cannot be used with --search-only")
    if args.search_only and set(args.recall) == {"unanswerable"}:
        raise SettingError("--recall unanswerable has nothing to be found")


def measure_text(args: argparse.Namespace) -> tuple:
    """Likelihood by position: the model, the result, its table and its curves."""
    from .evaluation.texts import read_text, text_files

    files = text_files(args.text)
    model, tokenizer = load_model(args)

    from .chat_template import Template
    from .evaluation import likelihood, report
    from .evaluation.bars import bar
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
    with bar(len(compared) * sum(map(len, documents))) as done:
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
    if args.passages is not None:
        return measure_lookups(args)

    from .evaluation.texts import read_text, text_files

    files = text_files(args.text or [])
    model, tokenizer = load_model(args)

    from .evaluation import recall, report
    from .evaluation.bars import bar

    books = [read_text(file, tokenizer) for file in files]
    groups = [
        group
        for name in args.recall
        for group in recall.make_tasks(
            name, tokenizer, args.distances, args.samples, args.seed, books
        )
    ]
    with bar(None) as done:
        answers = recall.recall(model, tokenizer, groups, done)
    summary = recall.summary(answers)
    summary["documents"] = [book.record() for book in books]
    return model, summary, report.recall(summary), report.recall_panel(summary)


def measure_lookups(args: argparse.Namespace) -> tuple:
    """Recall with passages: the model, the result, its tables and its curves."""
    from .evaluation.texts import text_files

    files = text_files(args.text)
    model, tokenizer = load_model(args)

    from .evaluation import lookup_recall, lookup_summary, report
    from .evaluation.bars import bar
    from .evaluation.columns import Kept
    from .evaluation.lookups import Shelves

    kept = Kept(Path(args.states) if args.states else None)
    sets = [x for x in args.recall if not (args.search_only and x == "unanswerable")]
    with Shelves(tokenizer) as shelves:
        stack = lookup_recall.haystack(
            files, tokenizer, shelves, sets, args.distances, args.samples, args.seed
        )
        found, times = lookup_recall.search(
            model, stack, sets, args.passages, args.seed
        )
    asked, answers = lookup_recall.groups(found, sets), None
    if not args.search_only:
        answers = lookup_recall.ask(model, tokenizer, stack.planted, asked, kept, bar)
    summary = {"passages": args.passages, "haystack": stack.record}
    summary |= {"ms per query": times}
    summary |= lookup_summary.summary(asked, answers, stack.planted, args.seed)
    text = f"{report.lookups(summary)}\n{report.searched(summary)}"
    return model, summary, text, report.lookup_panel(summary)


def measure_suite(args: argparse.Namespace) -> tuple:
    """A public suite: the model, the result and its table; it has no curves."""
    from .evaluation import report
    from .evaluation.bars import bar
    from .evaluation.suites import run as suites

    examples = suites.load(args.suite, args.data, args.limit)
    model, tokenizer = load_model(args)
    with bar(None) as done:
        answers = suites.run(
            model, tokenizer, examples, args.max_length, done, args.passages
        )
    summary = suites.summary(answers, args.seed)
    return model, summary, report.suite(summary), None


def evaluate(args: argparse.Namespace) -> None:
    what = check_args(args)

    measure = {"text": measure_text, "recall": measure_recall, "suite": measure_suite}
    model, summary, table, panel = measure[what](args)

    import mlx.core as mx

    from . import state as states
    from .variants import matched_window
    from .version import __version__

    config, matched, off = model.allmem, matched_window(model), model.memory_is_off
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
