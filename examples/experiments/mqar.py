"""The smallest demonstration of memory: pairs recalled from beyond the window.

    python examples/experiments/mqar.py

A model of two layers learns multi-query associative recall from scratch: pairs of a key
and a value, other tokens, then the keys again, each followed by its value. No pair is
in the window when its key comes again. With the memory never written, recall is at
chance.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.torch.hybrid import Hybrid, HybridAttention, View

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
    """Sequences ``[B, L]``, and the positions where keys come again."""

    def draw(tokens: range, size: int) -> Tensor:
        return tokens.start + torch.randint(len(tokens), (count, size))

    keys = torch.rand(count, len(KEYS)).argsort(dim=1)[:, :pairs]
    values = draw(VALUES, pairs)
    order = torch.rand(count, pairs).argsort(dim=1)
    written = torch.stack([keys, values], dim=2)
    again = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=2)
    parts = [written.flatten(1), draw(OTHERS, gap), again.flatten(1)]
    return torch.cat(parts, dim=1), torch.arange(2 * pairs + gap, 4 * pairs + gap, 2)


@torch.no_grad()
def match(layer: HybridAttention) -> None:
    """Makes queries like keys, and the output projection the inverse of the values'."""
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
    """The share of values that are the likeliest token after their key."""
    tokens, asking = sequences(64, pairs)
    likeliest = answers(hybrid, tokens, asking, view).argmax(-1)
    return (likeliest == tokens[:, asking + 1]).float().mean().item()


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


def command(args: Any) -> None:
    hybrid = train(args.start, args.pairs, args.steps, args.batch, args.seed)
    never = replace(VIEW, write=False)
    print(f"recalled: {recall(hybrid, args.pairs, VIEW):.1%}")
    print(f"with the memory never written: {recall(hybrid, args.pairs, never):.1%}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="mqar.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--start", default="matched", choices=("matched", "random"))
    add("--pairs", type=int, default=12)
    add("--steps", type=int, default=60)
    add("--batch", type=int, default=16)
    add("--seed", type=int, default=0)
    run(parser, command)
