"""How well an untrained memory tells apart the values that it wrote.

    python examples/experiments/readback.py --model FOLDER BOOK

Every layer's memory reads a book. Then it is read with the keys of earlier chunks. The
result of a key counts if the nearest value of its chunk is the key's. Chance is one
over the length of a chunk.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import torch

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.documents import Texts
from allmem_mlx.distillation.initial import CALIBRATION
from allmem_mlx.distillation.torch.fast_weights import (
    FastWeights,
    Tokens,
    norm,
    read,
    states,
)
from allmem_mlx.distillation.torch.hybrid import Hybrid, load_base
from allmem_mlx.distillation.torch.measure import initialize, measure
from allmem_mlx.distillation.torch.memory import unit


def nearest(weights: FastWeights, part: Tokens) -> float:
    """The share of a chunk's keys for which the key's value is the nearest."""
    recalled = read(weights, part.keys) - part.keys
    closest = (unit(recalled) @ unit(part.values).mT).argmax(-1)
    return (closest == torch.arange(part.keys.shape[1])).float().mean().item()


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
    rows, cosines, updates = [], [], []
    for layer, stream in hybrid.residual_streams(document):
        memory = layer.self_attn.memory
        tokens, _ = memory.tokens(layer.input_layernorm(stream))
        chunks = tokens.chunks(args.chunk)
        initial = memory.initial_weights(1)
        _, *written = states(initial, chunks, args.max_update_norm)
        updates += [norm(m.down, (-2, -1)).mean().item() for _, m in written]
        last, _ = written[-1]
        rows.append([nearest(last, chunks[-lag]) for lag in lags])
        keys = tokens.keys.mean(1)  # of unit vectors: its square is their mean cosine
        cosines.append(keys.square().sum(-1).mean().item())
    print(f"mean cosine of two keys: {mean(cosines):.3f}")
    print(f"mean update of down: {mean(updates):.2f}")
    for lag, share in zip(lags, map(mean, zip(*rows, strict=True)), strict=True):
        print(f"{lag * args.chunk:6d} tokens ago: {share:.3f}")


if __name__ == "__main__":
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
    run(parser, command)
