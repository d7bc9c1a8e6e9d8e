"""Which layers of a model retrieve facts from afar.

    python examples/experiments/retrieval_layers.py --model FOLDER BOOK

One layer at a time sees a window and sinks alone, all others everything. For facts
planted in a book, the mean loss of their answers and the share that is answered.
"""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.documents import Document
from allmem_mlx.distillation.sources import Texts
from allmem_mlx.distillation.torch.hybrid import (
    TEACHER,
    Hybrid,
    View,
    load_base,
    window_attention,
)
from allmem_mlx.distillation.torch.judge import answered

WINDOW = View(window=64, sinks=16)
FACTS = 8  # in a document


class Seeing:
    """An attention function with which some layers see everything."""

    def __init__(self) -> None:
        self.layers: set[int] = set()

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["view"] = TEACHER if module.layer_idx in self.layers else WINDOW
        return window_attention(module, *args, **kwargs)


def scores(hybrid: Hybrid, documents: list[Document]) -> str:
    """The mean loss of answers and the share that greedy decoding finds."""
    losses, right = answered(hybrid, documents, TEACHER)
    return f"{losses.mean():.3f}  {sum(right)}/{len(right)}"


@torch.no_grad()
def command(args: Any) -> None:
    model, tokenizer = load_base(args.model, args.dtype)
    # A memory in a layer is not read here.
    hybrid = Hybrid(model, AllMemConfig(heads=1, head_dim=1, hidden_dim=1, layers=[-1]))
    texts = Texts([args.book], tokenizer, args.seed)
    texts.random = random.Random(args.seed)
    documents = [
        texts.facts(args.length, args.length, FACTS, held_out=True)
        for _ in range(args.documents)
    ]
    seeing, layers = Seeing(), set(range(len(model.model.layers)))
    AttentionInterface.register("allmem", seeing)
    print("layers that see everything: loss of answers, answered")
    for name, seen in (("all", layers), ("none", set())):
        seeing.layers = seen
        print(f"{name:>11}: {scores(hybrid, documents)}", flush=True)
    for i in sorted(layers):
        seeing.layers = layers - {i}
        print(f"all but {i:3d}: {scores(hybrid, documents)}", flush=True)


if __name__ == "__main__":
    title = __doc__.split("\n")[0]
    parser = ArgumentParser(prog="retrieval_layers.py", description=title)
    add = parser.add_argument
    add("book", type=Path, help="Text file, UTF-8")
    add("--model", required=True, help="Folder of the base model")
    add("--length", type=int, default=1024, help="Tokens of a document")
    add("--documents", type=int, default=3)
    add("--dtype", default="float32", help="Of the base")
    add("--seed", type=int, default=0)
    run(parser, command)
