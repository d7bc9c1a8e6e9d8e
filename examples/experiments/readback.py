"""How long a memory can say back what it wrote.

    python examples/experiments/readback.py --model FOLDER BOOK [--memory RUN]

Every layer's memory reads a book. Then it is read with the keys of earlier chunks. The
result of a key counts if the nearest value of its chunk is the key's. Chance is one
over the length of a chunk. Surprising tokens, the ones that facts are made of, are
counted alone beside all.
"""

from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import UPDATES, VALUES, AllMemConfig
from allmem_mlx.distillation.initial import calibration
from allmem_mlx.distillation.recipe import whole_numbers
from allmem_mlx.distillation.sources import Texts
from allmem_mlx.distillation.torch.fast_weights import (
    FastWeights,
    Tokens,
    read,
    states,
)
from allmem_mlx.distillation.torch.hybrid import Hybrid, View, load_base
from allmem_mlx.distillation.torch.judge import token_losses
from allmem_mlx.distillation.torch.measure import initialize, measure
from allmem_mlx.distillation.torch.memory import Memory, unit
from allmem_mlx.distillation.torch.trainer import trained_config

VIEW = View(window=256, sinks=16)  # of the attention, for documents of any length
SURPRISING = 0.1  # share of the tokens that are counted alone
AROUND = 16  # chunks that are counted together


def nearest(weights: FastWeights, part: Tokens) -> Tensor:
    """Whether a key's value is the nearest to what it reads, ``[n, L]``."""
    recalled = read(weights, part.keys) - part.keys
    closest = (unit(recalled) @ unit(part.values).mT).argmax(-1)
    return closest == torch.arange(part.keys.shape[1])


def most(surprise: Tensor, share: float) -> Tensor:
    """The most surprising tokens, ``[L]``."""
    return surprise >= surprise.quantile(1 - share)


def sharpened(rates: Tensor, power: float) -> Tensor:
    """``c eta^power``; the highest tenth keeps its mean, ``[n, L, 3]``."""
    most = rates >= rates.quantile(1 - SURPRISING, dim=1, keepdim=True)
    mean_of_most = (rates * most).sum(1, keepdim=True)
    rates = rates**power
    return rates * (mean_of_most / (rates * most).sum(1, keepdim=True))


def prepared(args: Any) -> tuple[Hybrid, Texts]:
    """A hybrid with a memory that is trained, or at its start; and the book."""
    model, tokenizer = load_base(args.model, args.dtype)
    texts = Texts([args.book], tokenizer, args.seed)
    if args.memory:
        config = trained_config(args.memory)
    else:
        config = AllMemConfig(
            heads=args.heads,
            head_dim=args.head_dim,
            hidden_dim=args.hidden_dim,
            learning_rate=args.learning_rate,
            max_update_norm=args.max_update_norm,
            values=args.values,
            updates=args.updates,
            layers=whole_numbers("--layers", args.layers) if args.layers else None,
        )
    hybrid = Hybrid(model, config)
    if args.memory:
        hybrid.load(load_file(args.memory / "memory.safetensors"))
    elif args.start == "whitened":
        measured = measure(hybrid, torch.tensor(calibration(texts)))
        initialize(hybrid, *measured, alpha=0.1, seed=args.seed)
    return hybrid, texts


def found(
    memory: Memory, tokens: Tokens, chunk: int, counted: Tensor, config: AllMemConfig
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For tokens of some ages the age, and the shares of all and of the counted ones
    that each head finds, ``[n]``."""
    chunks, parts = tokens.chunks(chunk), counted.split(chunk)
    limits = config.max_update_norm, config.written
    written = states(memory.initial_weights(1), chunks, *limits)
    last, _ = deque(written, maxlen=1).pop()
    lag = 1
    while (lag + min(lag, AROUND)) * chunk <= len(counted):
        near = range(lag, lag + min(lag, AROUND))  # of about this age
        right = torch.cat([nearest(last, chunks[-i]).float() for i in near], dim=1)
        seen = torch.cat([parts[-i] for i in near])
        yield lag * chunk, right.mean(1), right[:, seen].mean(1)
        lag *= 2


@torch.no_grad()
def command(args: Any) -> None:
    torch.manual_seed(args.seed)
    hybrid, texts = prepared(args)
    config = hybrid.config
    document = torch.tensor([texts.passage(args.length)])
    surprise = torch.cat([torch.zeros(1), token_losses(hybrid, document, VIEW)[0]])
    counted = most(surprise, SURPRISING)
    embedded = hybrid.embedded(document)
    layers, cosines = [], []
    for layer, stream in hybrid.residual_streams(document, VIEW):
        memory, u = layer.self_attn.memory, layer.input_layernorm(stream)
        tokens, _, _ = memory.tokens(u, embedded)
        layers.append((memory, tokens))
        keys = tokens.keys.mean(1)  # of unit vectors: its square is their mean cosine
        cosines.append(keys.square().sum(-1).mean().item())
    print(f"mean cosine of two keys: {mean(cosines):.3f}")
    print("chunk  share  power   ago    all  surprising; best head:    all  surprising")
    chunks = whole_numbers("--chunks", args.chunks)
    for chunk, share, power in product(chunks, args.shares, args.powers):
        written = most(surprise, share)
        rows: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for memory, tokens in layers:
            rates = sharpened(tokens.rates, power) * written[:, None]
            tokens = tokens._replace(rates=rates)
            for ago, *shares in found(memory, tokens, chunk, counted, config):
                rows.setdefault(ago, []).append((shares[0], shares[1]))
        for ago, of_layers in rows.items():
            every, seen = map(torch.cat, zip(*of_layers, strict=True))
            print(
                f"{chunk:5d}  {share:5.2f}  {power:5.2f}  {ago:5d}",
                f" {every.mean():.3f}  {seen.mean():10.3f}",
                f" {every.max():15.3f}  {seen.max():10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = ArgumentParser(prog="readback.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("book", type=Path, help="Text file, UTF-8")
    add("--model", required=True, help="Folder of the base model")
    add("--memory", type=Path, help="Folder of a run; default: an untrained memory")
    add("--shares", type=float, nargs="+", default=[1.0], help="Tokens written")
    add("--powers", type=float, nargs="+", default=[1.0], help="Of learning rates")
    add("--start", default="whitened", choices=("whitened", "random"))
    add("--length", type=int, default=4096)
    add("--heads", type=int, default=3)
    add("--head-dim", type=int, default=64)
    add("--hidden-dim", type=int, default=128)
    add("--chunks", default="64")
    add("--learning-rate", type=float, default=0.02)
    add("--max-update-norm", type=float, default=3.0)
    add("--values", default="hidden", choices=VALUES)
    add("--updates", default="all", choices=UPDATES)
    add("--layers", help="Those that have a memory, separated by commas")
    add("--dtype", default="float32", help="Of the base")
    add("--seed", type=int, default=0)
    run(parser, command)
