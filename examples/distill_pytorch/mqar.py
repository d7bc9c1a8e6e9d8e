"""The smallest thing that shows memory: pairs recalled from beyond the window.

    python examples/distill_pytorch/mqar.py

A model of two layers learns multi-query associative recall from scratch: pairs of a key
and a value, other tokens, then the keys again, each followed by its value. Window and
gap are such that attention sees no pair when it is asked for. With the memory never
written, what it answers is chance.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from hybrid import Hybrid, HybridAttention, View
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig

KEYS, VALUES, OTHERS = range(96), range(96, 192), range(192, 256)
CONFIG = AllMemConfig(
    heads=2,
    head_dim=32,
    hidden_dim=64,
    window=16,
    sinks=0,
    chunk=8,
    fold=8,
    learning_rate=0.1,
)
VIEW = View(CONFIG.window, CONFIG.sinks, CONFIG.chunk, memory=True)


def sequences(count: int, pairs: int, gap: int = 24) -> tuple[Tensor, Tensor]:
    """Sequences ``[B, L]``, and the positions of the keys that ask."""

    def draw(tokens: range, size: int) -> Tensor:
        return tokens.start + torch.randint(len(tokens), (count, size))

    keys = torch.rand(count, len(KEYS)).argsort(dim=1)[:, :pairs]
    values = draw(VALUES, pairs)
    order = torch.rand(count, pairs).argsort(dim=1)
    told = torch.stack([keys, values], dim=2).flatten(1)
    asked = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=2)
    tokens = torch.cat([told, draw(OTHERS, gap), asked.flatten(1)], dim=1)
    return tokens, torch.arange(2 * pairs + gap, tokens.shape[1], 2)


@torch.no_grad()
def match(layer: HybridAttention) -> None:
    """Queries are made like keys, and what is read back leaves as it came."""
    memory, width = layer.memory, CONFIG.heads * CONFIG.head_dim
    queries, keys, values = memory.in_proj.weight[: 3 * width].split(width)
    queries.copy_(keys)
    nn.init.orthogonal_(values)
    memory.o_proj.weight.copy_(values.T)
    layer.alpha.fill_(0.1)


def tiny_hybrid(start: str) -> Hybrid:
    width = CONFIG.heads * CONFIG.head_dim
    base = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        num_hidden_layers=2,
        intermediate_size=2 * width,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.heads,
        head_dim=CONFIG.head_dim,
        vocab_size=OTHERS.stop,
        tie_word_embeddings=True,
    )
    hybrid = Hybrid(AutoModelForCausalLM.from_config(base), CONFIG)
    hybrid.model.requires_grad_(True)
    for layer in hybrid.layers():
        nn.init.constant_(layer.alpha, 0.1)
        if start == "matched":
            match(layer)
    return hybrid


def answers(hybrid: Hybrid, tokens: Tensor, asking: Tensor, view: View) -> Tensor:
    """Logits ``[B, pairs, V]``."""
    return hybrid.hidden(tokens, view)[:, asking] @ hybrid.head.T


@torch.no_grad()
def recall(hybrid: Hybrid, pairs: int, view: View) -> float:
    """Share of values that are the likeliest token after their key."""
    tokens, asking = sequences(64, pairs)
    found = answers(hybrid, tokens, asking, view).argmax(-1)
    return (found == tokens[:, asking + 1]).float().mean().item()


def train(start: str, pairs: int, steps: int, batch: int, seed: int) -> Hybrid:
    """Trains all parameters by cross-entropy on the answers."""
    torch.manual_seed(seed)
    hybrid = tiny_hybrid(start)
    parameters = list(hybrid.model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=3e-3, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    for step in range(steps):
        tokens, asking = sequences(batch, pairs)
        logits = answers(hybrid, tokens, asking, VIEW).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, asking + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, 3 * (1 - step / steps))
        optimizer.step()
    return hybrid


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="mqar.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--start", default="matched", choices=("matched", "random"))
    add("--pairs", type=int, default=12)
    add("--steps", type=int, default=60)
    add("--batch", type=int, default=16)
    add("--seed", type=int, default=0)
    return parser


def command(args: Any) -> None:
    hybrid = train(args.start, args.pairs, args.steps, args.batch, args.seed)
    never = replace(VIEW, write=False)
    print(f"recalled: {recall(hybrid, args.pairs, VIEW):.1%}")
    print(f"with the memory never written: {recall(hybrid, args.pairs, never):.1%}")


if __name__ == "__main__":
    run(configure_parser(), command)
