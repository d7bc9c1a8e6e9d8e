"""An upper bound for memory: an exact cache of all tokens, without training.

    python examples/experiments/neural_cache.py --model FOLDER --data TEXTS

A neural cache (Grave, Joulin and Usunier, arXiv 1612.04426) stores every token with the
hidden state before it, and mixes the tokens after similar states into the prediction:

    p(w) = (1 - lambda) p_window(w) + lambda sum_i softmax_i(theta <q, k_i>) [w_i = w]

Keys are the last hidden states over window + sinks, whitened, of unit size. The cache
grows with the text, as a memory of fixed size does not. It shows what such a memory
could gain; the cache of another document shows how much of that is specific to this
one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.initial import calibration, input_scale
from allmem_mlx.distillation.sources import open_sources
from allmem_mlx.distillation.torch.hybrid import TEACHER, Hybrid, load_base
from allmem_mlx.distillation.torch.judge import VIEW, token_losses

SHARES = (0.02, 0.05, 0.1, 0.2)  # lambda


def recalled(
    queries: Tensor, keys: Tensor, cached: Tensor, targets: Tensor, theta: float
) -> Tensor:
    """The cache's probabilities of the targets, ``[L - 1]``; position t sees the tokens
    before its chunk."""
    scores = theta * queries @ keys.T
    token = torch.arange(len(targets))
    seen = token[None, : len(cached)] + 1 < token[:, None] // VIEW.chunk * VIEW.chunk
    shares = scores.masked_fill(~seen, -1e9).softmax(-1) * seen
    return (shares * (cached[None] == targets[:, None])).sum(-1)


@torch.no_grad()
def command(args: Any) -> None:
    model, tokenizer = load_base(args.model, "float32")
    source, validation = open_sources(
        args.data, args.held_out, args.validation, tokenizer, args.seed
    )
    hybrid = Hybrid(model, AllMemConfig(heads=1, head_dim=1, hidden_dim=1))
    passages = torch.tensor(calibration(source))
    states = hybrid.hidden(passages, VIEW).flatten(0, 1)
    whiten = torch.from_numpy(input_scale((states.T @ states / len(states)).numpy()))

    tokens = torch.tensor([validation.passage(args.length) for _ in range(args.books)])
    far = slice(2 * VIEW.window, None)
    full, window = (token_losses(hybrid, tokens, view) for view in (TEACHER, VIEW))
    hidden = hybrid.hidden(tokens, VIEW)[:, :-1] @ whiten.float()
    keys, targets = F.normalize(hidden, dim=-1), tokens[:, 1:]
    print(
        f"nats per token from {far.start} on: full attention {full[:, far].mean():.4f}"
        f", window + sinks {window[:, far].mean():.4f}"
    )
    for name, shift in (("own", 0), ("another document's", 1)):
        others = keys.roll(shift, 0), targets.roll(shift, 0)
        documents = zip(keys, *others, targets, strict=True)
        cached = torch.stack([recalled(*x, args.theta) for x in documents])
        losses = []
        for share in SHARES:
            p = (1 - share) * (-window).exp() + share * cached
            losses.append(f"{share:g}: {-p.log()[:, far].mean():.4f}")
        print(f"{name} cache, by lambda: {', '.join(losses)}", flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(prog="neural_cache.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="Folder, as Hugging Face writes it")
    add("--data", required=True, help="Folder of *.txt")
    add("--held-out", default="", help="Beginnings of names of texts to leave out")
    add("--validation", default="valid", help="The same of texts to evaluate on")
    add("--books", type=int, default=6)
    add("--length", type=int, default=2048, help="Tokens of a book")
    add("--theta", type=float, default=20.0)
    add("--seed", type=int, default=0)
    run(parser, command)
