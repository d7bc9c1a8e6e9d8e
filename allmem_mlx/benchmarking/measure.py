"""The measurements of ``benchmark``: each prints its tables and returns its results."""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import state as states
from ..documents import Document
from ..errors import AllMemError, SettingError
from ..model import Model
from . import fluency, results, soak, speed


def measure_speed(
    args: argparse.Namespace, model: Model, tokenizer: Any, title: str
) -> dict[str, Any]:
    """Speed and memory, of several trials."""
    runners = speed.runners(model, args.beside)
    lengths = sorted(set(args.prompt_tokens))
    mx.random.seed(0)
    vocabulary = model.base_config["vocab_size"]
    tokens: Any = mx.random.randint(0, vocabulary, (max(lengths),)).tolist()
    print(f"{title}\nRunning warmup..")
    block = model.allmem.block
    list(speed.measure(runners, (tokens * block)[:block], [block], 2))
    count = args.generation_tokens
    print(f"Timing with prompt_tokens={lengths}, generation_tokens={count}.")
    trials: list[list[speed.Measured]] = []
    for i in range(args.num_trials):
        trials.append([])
        for x in speed.measure(runners, tokens, lengths, count):
            trials[-1].append(x)
            print(
                f"Trial {i + 1}:  {x.length} tokens, {x.name}: {_averages([x])}",
                flush=True,
            )
    for same in zip(*trials, strict=True):
        print(f"Averages: {same[0].length} tokens, {same[0].name}: {_averages(same)}")
    rows = results.summarize(model, trials)
    ratios, shares = results.ratios(rows), results.shares(model, rows)
    print(f"\nBest of {args.num_trials}")
    print(results.describe(rows, ratios, shares))
    file = _state_file(model, runners[0].cache)
    print(
        f"State file: {file['file']} bytes, saved in {file['save']:.3f} s, opened in "
        f"{file['open']:.3f} s"
    )
    return {
        "title": title,
        "config": asdict(model.allmem),
        "trials": [[asdict(x) for x in trial] for trial in trials],
        "best": rows,
        "ratios": ratios,
        "shares of the memory": shares,
        "state file": file,
    }


def _averages(same: Sequence[speed.Measured]) -> str:
    values = {
        "prompt_tps": [x.prompt_tps for x in same],
        "generation_tps": [x.generation_tps for x in same],
        "peak_memory": [x.peak / 1e9 for x in same],
    }
    return ", ".join(f"{name}={np.mean(x):.3f}" for name, x in values.items())


def _state_file(model: Any, cache: list[Any]) -> dict[str, float]:
    """Saves a state and opens it, as another process would: the size of the ``file`` in
    bytes, ``save`` and ``open`` in seconds."""
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


def measure_soak(
    args: argparse.Namespace, model: Model, tokenizer: Any, title: str
) -> dict[str, Any]:
    """A long reading, and the repetition in what is written after it."""
    minimum = 2 * soak.SAMPLED * model.allmem.block
    if args.soak < minimum:
        raise SettingError(f"--soak must be at least {minimum}")
    if args.text:
        tokens = _text_tokens(args.text, tokenizer)
    else:
        draw, vocabulary = random.Random(0), model.base_config["vocab_size"]
        tokens = (draw.randrange(vocabulary) for _ in repeat(None))
    print(title)
    marks, cache = [], model.make_cache()
    for mark in soak.soak(model, cache, tokens, args.soak):
        marks.append(mark)
        print(f"{mark.position:,} tokens, NLL {mark.nll:.4f}", flush=True)
    summary = soak.summarize(model, marks)
    print(soak.describe(marks, summary))
    result = {"title": title, "summary": summary, "marks": [asdict(m) for m in marks]}
    if args.text:
        result["fluency"] = _fluency(model, cache, tokens, tokenizer)
    return result


def _text_tokens(path: Path, tokenizer: Any) -> Iterator[int]:
    """Endless tokens of a text; see :func:`soak.edited`.

    Raises:
        AllMemError: if the file cannot be read or has no text.
    """
    paragraphs = [
        tokenizer.encode(part + "\n\n", add_special_tokens=False)
        for part in "".join(Document(path).text()).split("\n\n")
        if part.strip()
    ]
    if not paragraphs:
        raise AllMemError(f"{path} has no text")
    return soak.edited(paragraphs, seed=0)


def _fluency(
    model: Model, cache: list[Any], tokens: Iterator[int], tokenizer: Any
) -> dict[str, Any]:
    stops = set(tokenizer.eos_token_ids)
    found = list(fluency.continuations(model, cache, tokens, stops))
    rows = fluency.summarize(found)
    print(
        f"\nContinuations, {fluency.CONTINUED} tokens each, of {fluency.PAGES} more "
        f"pages of {fluency.PAGE:,} tokens; only AllMem has read the text before"
    )
    print(fluency.describe(rows))
    texts = [asdict(x) | {"text": tokenizer.decode(x.tokens)} for x in found]
    return {"repeated": rows, "continuations": texts}
