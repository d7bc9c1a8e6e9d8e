"""Judge a distilled memory on whole held-out books.

    python examples/distill_pytorch/evaluate.py --model FOLDER --memory FOLDER BOOK...

Prints one table: loss beyond the window by distance, and planted facts found, for full
attention, window + sinks, the memory, and its two controls.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from base import best_device, load_base
from hybrid import TEACHER, Hybrid, View
from judge import answered, token_losses
from safetensors.torch import load_file
from texts import HELD_OUT_FACTS, Texts
from torch import Tensor

from allmem_mlx.command import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError

RESAMPLES = 10_000


def load(model: Path, memory: Path, dtype: str) -> tuple[Hybrid, Any]:
    """A base model with a trained memory, and its tokenizer.

    Raises:
        AllMemError: if a file is missing, or the memory is not this model's.
    """
    if not (memory / "memory.safetensors").is_file():
        raise AllMemError(f"{memory} has no memory.safetensors; train.py writes it")
    try:
        block = json.loads((memory / "config.json").read_text())["allmem"]
    except (OSError, ValueError, KeyError) as error:
        raise AllMemError(f"{memory}/config.json has no allmem block") from error
    config = AllMemConfig.from_dict(block)
    base, tokenizer = load_base(model, dtype)
    hybrid = Hybrid(base, config)
    weights = load_file(memory / "memory.safetensors")
    parameters = hybrid.parameters()
    shapes = {k: x.shape for k, x in weights.items()}
    if shapes != {k: x.shape for k, x in parameters.items()}:
        raise AllMemError(f"{memory} is not a memory of {model}")
    with torch.no_grad():
        for name, x in parameters.items():
            x.copy_(weights[name])
    hybrid.model.to(best_device())
    return hybrid, tokenizer


def recovered(window: Tensor, full: Tensor, memory: Tensor) -> Tensor:
    """``(window - memory) / (window - full)`` of mean losses."""
    return (window - memory) / (window - full)


def interval(window: Tensor, full: Tensor, memory: Tensor, seed: int) -> list[float]:
    """95 % of the gap recovered when documents are drawn again, by bootstrap."""
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(window), (RESAMPLES, len(window)), generator=draw)
    gaps = recovered(*(x[picks].mean(1) for x in (window, full, memory)))
    return gaps.quantile(torch.tensor([0.025, 0.975])).tolist()


def buckets(window: int, length: int) -> list[tuple[int, int]]:
    """``[W, 2W), [2W, 4W), ...`` up to the length."""
    edges = [window]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return list(zip(edges, edges[1:], strict=False))


def report(hybrid: Hybrid, tokens: Tensor, facts: list, view: View, seed: int) -> None:
    """Prints the table, and what of the gap is recovered."""
    trained = replace(view, memory=True)
    views = {
        "full attention": TEACHER,
        "window + sinks": view,
        "memory": trained,
        "memory never written": replace(trained, write=False),
        "memory of another document": replace(trained, swap=True),
    }
    ranges = buckets(view.window, tokens.shape[1] - 1)
    heads = [f"{a}-{b}" for a, b in ranges]
    print("| | beyond window |", " | ".join(heads), "| facts |")
    print("|---" * (len(heads) + 3) + "|", flush=True)
    means = {}
    for name, v in views.items():
        # An option of a batch, so facts cannot be asked with another's memory.
        found = "" if v.swap else f"{sum(answered(hybrid, d, v) for d in facts):d}"
        losses = token_losses(hybrid, tokens, v)
        means[name] = losses[:, view.window :].mean(1)
        columns = [losses[:, a:b].mean().item() for a, b in ranges]
        cells = " | ".join(f"{x:.4f}" for x in [means[name].mean().item(), *columns])
        print(f"| {name} | {cells} | {found} |", flush=True)

    window, full = means["window + sinks"], means["full attention"]
    for name in list(views)[2:]:
        gap = recovered(window.mean(), full.mean(), means[name].mean()).item()
        low, high = interval(window, full, means[name], seed)
        print(f"{name}: {gap:.1%} of the gap recovered ({low:.1%} to {high:.1%})")
    print(f"facts asked: {sum(len(d.answers) for d in facts)}")


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("books", nargs="+", type=Path, metavar="BOOK", help="Text file, UTF-8")
    add("--model", type=Path, required=True, help="Folder of the base model")
    add("--memory", type=Path, required=True, help="Folder that train.py wrote")
    add("--length", type=int, default=8192, help="Tokens of a document")
    add("--window", type=int, default=256, help="Tokens that attention sees")
    add("--sinks", type=int, default=16, help="First tokens that attention sees")
    add("--chunk", type=int, default=64, help="Tokens between two updates")
    add("--fact-length", type=int, default=4096, help="Tokens of one with facts")
    add("--facts", type=int, default=8, help="Facts in a document")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--seed", type=int, default=0, help="Of where documents begin")
    return parser


def command(args: Any) -> None:
    if missing := [str(book) for book in args.books if not book.is_file()]:
        raise AllMemError(f"{missing[0]}: no such file")
    hybrid, tokenizer = load(args.model, args.memory, args.dtype)
    documents, facts = [], []
    for book in args.books:
        texts = Texts([book], tokenizer, args.seed)
        documents.append(texts.passage(args.length))
        texts.random = random.Random(args.seed + 1)
        facts.append(texts.facts(args.fact_length, HELD_OUT_FACTS, args.facts))
    view = View(args.window, args.sinks, args.chunk)
    report(hybrid, torch.tensor(documents), facts, view, args.seed)


if __name__ == "__main__":
    run(configure_parser(), command)
