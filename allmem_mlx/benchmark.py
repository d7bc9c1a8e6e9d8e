"""Reading and decoding speed and memory, beside window + sinks and full attention.

All have the same weights and take turns in one process (``benchmarking/speed.py``).
``--soak`` reads a long text instead, and watches what should stay within bounds
(``benchmarking/soak.py``).
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.flags import add_sizes, sizes
from .cli.report import add_output, check_output, write_output
from .cli.run import ArgumentParser, run
from .errors import AllMemError, SettingError

if TYPE_CHECKING:
    from .benchmarking.speed import Measured
    from .model import Model


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.benchmark", description=__doc__)
    add = parser.add_argument
    add("--model", help="Model folder. Default: the embedded SmolLM2-135M-Instruct")
    add(
        "--prompt-tokens",
        "-p",
        type=int,
        nargs="+",
        default=[1024, 2048, 4096, 8192],
        help="Lengths to read. Default: %(default)s",
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
        help="Times to measure everything. Default: %(default)s",
    )
    add_sizes(parser)
    add(
        "--beside",
        nargs="*",
        choices=("window", "full"),
        default=("window", "full"),
        help="What to compare with: window + sinks, full attention, or nothing. "
        "Default: both",
    )
    add("--soak", type=int, metavar="N", help="Read N tokens, and watch")
    add("--text", type=Path, metavar="FILE", help="What --soak reads. Default: noise")
    add_output(parser)
    return parser


def measure_file(model: Any, cache: list[Any]) -> dict[str, float]:
    """Saves what was read to a file and opens it, as another process would.

    Args:
        model: an AllMem model.
        cache (list): what it has read.

    Returns:
        dict: size of the ``file`` in bytes, ``save`` and ``open`` in seconds.
    """
    from . import state as states

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state")
        start = time.perf_counter()
        states.save(states.State(cache), path, model)
        saved = time.perf_counter()
        model._fingerprint = None  # another process has not computed it yet
        again = time.perf_counter()
        states.load(path, model)
        return {
            "save": saved - start,
            "open": time.perf_counter() - again,
            "file": os.path.getsize(path),
        }


def _averages(same: Sequence["Measured"]) -> str:
    return ", ".join(
        f"{name}={sum(values) / len(values):.3f}"
        for name, values in (
            ("prompt_tps", [x.prompt_tps for x in same]),
            ("generation_tps", [x.generation_tps for x in same]),
            ("peak_memory", [x.peak / 1e9 for x in same]),
        )
    )


def speed(args: argparse.Namespace, model: "Model", title: str) -> None:
    import mlx.core as mx

    from .benchmarking import results
    from .benchmarking.speed import kinds, measure, runners

    compared = runners(model, args.beside)
    lengths = sorted(set(args.prompt_tokens))
    mx.random.seed(0)
    vocabulary = model.base_config["vocab_size"]
    tokens: Any = mx.random.randint(0, vocabulary, (max(lengths),)).tolist()
    print(f"{title}\nRunning warmup..")
    block = model.allmem.block
    list(measure(compared, (tokens * block)[:block], [block], 2))
    count = args.generation_tokens
    print(f"Timing with prompt_tokens={lengths}, generation_tokens={count}.")
    trials: list[list[Measured]] = []
    for i in range(args.num_trials):
        trials.append([])
        for one in measure(compared, tokens, lengths, count):
            trials[-1].append(one)
            line = f"Trial {i + 1}:  {one.length} tokens, {one.name}: "
            print(line + _averages([one]), flush=True)
    for same in zip(*trials, strict=True):
        print(f"Averages: {same[0].length} tokens, {same[0].name}: {_averages(same)}")
    rows = results.summarize(model, trials)
    ratios, shares = results.ratios(rows), results.shares(model, rows)
    print(f"\nBest of {args.num_trials}")
    print(results.describe(rows, ratios, shares))
    file = measure_file(model, compared[0].cache)
    print(
        f"State file: {file['file']} bytes, saved in {file['save']:.3f} s, opened in "
        f"{file['open']:.3f} s"
    )
    result = {
        "title": title,
        "config": asdict(model.allmem),
        "trials": [[asdict(x) for x in trial] for trial in trials],
        "best": rows,
        "ratios": ratios,
        "shares of the memory": shares,
        "state file": file,
    }
    last, due = trials[-1][-len(compared) :], kinds(model, lengths[-1], count)
    write_output(args, result, lambda: results.plot(rows, last, due, title))


def text_tokens(path: Path, tokenizer: Any) -> Iterator[int]:
    """Tokens of a text without end; see :func:`soak.edited`.

    Raises:
        AllMemError: if the file cannot be read or has no text.
    """
    from .benchmarking.soak import edited
    from .documents import Document

    paragraphs = [
        tokenizer.encode(part + "\n\n", add_special_tokens=False)
        for part in "".join(Document(path).text()).split("\n\n")
        if part.strip()
    ]
    if not paragraphs:
        raise AllMemError(f"{path} has no text")
    return edited(paragraphs, seed=0)


def fluency(
    model: "Model", cache: list[Any], tokens: Iterator[int], tokenizer: Any
) -> dict[str, Any]:
    """Goes on with a text, and prints how much of that is repetition."""
    from .benchmarking import fluency as fluent

    stops = set(tokenizer.eos_token_ids)
    found = list(fluent.continuations(model, cache, tokens, stops))
    rows = fluent.summarize(found)
    print(
        f"\n{fluent.PAGES} pages of {fluent.PAGE:,} tokens more, and what comes after "
        f"each, {fluent.CONTINUED} tokens; others than AllMem have read the page alone"
    )
    print(fluent.describe(rows))
    texts = [asdict(each) | {"text": tokenizer.decode(each.tokens)} for each in found]
    return {"repeated": rows, "continuations": texts}


def soak(args: argparse.Namespace, model: "Model", tokenizer: Any, title: str) -> None:
    from .benchmarking import soak as long

    least = 2 * long.LOOKED_AT * model.allmem.block
    if args.soak < least:
        raise SettingError(f"--soak must be at least {least}")
    if args.text:
        tokens = text_tokens(args.text, tokenizer)
    else:
        draw, vocabulary = random.Random(0), model.base_config["vocab_size"]
        tokens = (draw.randrange(vocabulary) for _ in repeat(None))
    print(title)
    marks, cache = [], model.make_cache()
    for mark in long.soak(model, cache, tokens, args.soak):
        marks.append(mark)
        print(f"{mark.position:,} tokens, NLL {mark.nll:.4f}", flush=True)
    summary = long.summarize(model, marks)
    print(long.describe(marks, summary))
    result = {"title": title, "summary": summary, "marks": [asdict(m) for m in marks]}
    if args.text:
        result["fluency"] = fluency(model, cache, tokens, tokenizer)
    write_output(args, result, lambda: long.plot(marks, title))


def benchmark(args: argparse.Namespace) -> None:
    if min(*args.prompt_tokens, args.generation_tokens, args.num_trials) < 1:
        raise SettingError("-p, -g and -n must be at least 1")
    if args.text and args.soak is None:
        raise SettingError("--text goes with --soak")
    check_output(args)

    import mlx.core as mx

    from .loading import load

    model, tokenizer = load(args.model, model_config=sizes(args))
    config = model.allmem
    title = (
        f"window {config.window}, sinks {config.sinks}, chunk {config.chunk}, "
        f"{model.dtype}, {mx.default_device()}"
    ).replace("mlx.core.", "")
    if model.memory_is_off:
        title += ", memory: none"
    if args.soak is None:
        speed(args, model, title)
    else:
        soak(args, model, tokenizer, title)


def main() -> None:
    run(setup_arg_parser(), benchmark)


if __name__ == "__main__":
    main()
