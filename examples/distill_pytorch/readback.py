"""How well a memory tells apart what it wrote, before any training.

    python examples/distill_pytorch/readback.py --model FOLDER BOOK

Every layer's memory reads a book. Then the keys of earlier chunks are read back: what
comes is compared with the values that the chunk had, and counts if its own value is the
nearest. Chance is one in the chunk.
"""

from pathlib import Path
from typing import Any

import torch
from base import load_base
from fast_weights import FastWeights, Tokens, norm, read, update
from hybrid import TEACHER, Hybrid
from initial import initialize, measure
from memory import unit
from torch import Tensor

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.documents import Texts
from allmem_mlx.distillation.initial import CALIBRATION


def layer_inputs(hybrid: Hybrid, tokens: Tensor) -> list[Tensor]:
    """u of each hybrid layer."""
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for layer in hybrid.layers()
    ]
    hybrid.hidden(tokens, TEACHER)
    for hook in hooks:
        hook.remove()
    return inputs


def write_all(initial: FastWeights, tokens: Tokens, chunk: int, theta: float):
    """The weights after a document, and the norm of each update of down."""
    norms = FastWeights(*(norm(w, -1) for w in initial))
    weights = initial
    momentum = FastWeights(*(torch.zeros_like(w) for w in initial))
    sizes = []
    for part in tokens.chunks(chunk):
        weights, momentum = update(weights, momentum, norms, part, theta)
        sizes.append(norm(momentum.down, (-2, -1)).mean().item())
    return weights, sum(sizes) / len(sizes)


def nearest(weights: FastWeights, part: Tokens) -> float:
    """Share of a chunk's keys whose own value is the nearest to what is read."""
    recalled = read(weights, part.keys) - part.keys
    closest = (unit(recalled) @ unit(part.values).mT).argmax(-1)
    return (closest == torch.arange(part.keys.shape[1])).float().mean().item()


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="readback.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("book", type=Path, help="Text file, UTF-8")
    add("--model", required=True, help="Folder of the base model")
    add("--start", default="whitened", choices=("whitened", "random"))
    add("--length", type=int, default=4096)
    add("--heads", type=int, default=3)
    add("--head-dim", type=int, default=64)
    add("--hidden-dim", type=int, default=128)
    add("--chunk", type=int, default=64)
    add("--learning-rate", type=float, default=0.02)
    add("--max-update-norm", type=float, default=3.0)
    add("--seed", type=int, default=0)
    return parser


@torch.no_grad()
def command(args: Any) -> None:
    torch.manual_seed(args.seed)
    config = AllMemConfig(
        heads=args.heads,
        head_dim=args.head_dim,
        hidden_dim=args.hidden_dim,
        chunk=args.chunk,
        learning_rate=args.learning_rate,
        max_update_norm=args.max_update_norm,
    )
    model, tokenizer = load_base(args.model, "float32")
    hybrid = Hybrid(model, config)
    texts = Texts([args.book], tokenizer, args.seed)
    if args.start == "whitened":
        count, length = CALIBRATION
        passages = [texts.passage(length) for _ in range(count)]
        measured = measure(hybrid, torch.tensor(passages))
        initialize(hybrid, *measured, alpha=0.1, seed=args.seed)

    document = torch.tensor([texts.passage(args.length)])
    lags = [2**i for i in range(20) if 2**i * args.chunk <= args.length]
    rows, cosines, sizes = [], [], []
    for layer, u in zip(hybrid.layers(), layer_inputs(hybrid, document), strict=True):
        tokens, _ = layer.memory.tokens(u)
        weights, size = write_all(
            layer.memory.initial_weights(1), tokens, args.chunk, args.max_update_norm
        )
        parts = tokens.chunks(args.chunk)
        rows.append([nearest(weights, parts[-lag]) for lag in lags])
        keys = tokens.keys.mean(1)  # of unit vectors: its square is their mean cosine
        cosines.append(keys.square().sum(-1).mean().item())
        sizes.append(size)
    found = torch.tensor(rows).mean(0).tolist()
    print(f"mean cosine of two keys: {sum(cosines) / len(cosines):.3f}")
    print(f"mean update of down: {sum(sizes) / len(sizes):.2f}")
    for lag, share in zip(lags, found, strict=True):
        print(f"{lag * args.chunk:6d} tokens ago: {share:.3f}")


if __name__ == "__main__":
    run(configure_parser(), command)
