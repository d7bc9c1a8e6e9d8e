"""What there is to be remembered: an exact cache of what was read, without training.

    python examples/distill_pytorch/neural_cache.py --model FOLDER --data TEXTS

A neural cache (Grave, Joulin and Usunier, arXiv 1612.04426) keeps every token with the
hidden state before it, and mixes what followed similar states into the prediction:

    p(w) = (1 - lambda) p_window(w) + lambda sum_i softmax_i(theta <q, k_i>) [w_i = w]

Keys are the last hidden states over window + sinks, whitened, of unit size. It grows
with the text, so it is no memory of fixed size; it says what one could be worth, and
with another document's cache, how much of that is this document's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from base import load_base
from hybrid import TEACHER, Hybrid
from judge import VIEW, Judge, token_losses
from torch import Tensor

from allmem_mlx.cli.run import ArgumentParser, run
from allmem_mlx.config import AllMemConfig
from allmem_mlx.distillation.documents import open_sources
from allmem_mlx.distillation.initial import CALIBRATION, input_scale

SHARES = (0.02, 0.05, 0.1, 0.2)  # lambda


def configure_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="neural_cache.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="Folder, as Hugging Face writes it")
    add("--data", required=True, help="Folder of *.txt")
    add("--held-out", default="", help="Beginnings of names that are not touched")
    add("--validation", default="valid", help="... of the texts to judge on")
    add("--books", type=int, default=6)
    add("--length", type=int, default=2048, help="Tokens of a book")
    add("--theta", type=float, default=20.0)
    add("--seed", type=int, default=0)
    return parser


def recalled(
    queries: Tensor, keys: Tensor, written: Tensor, wanted: Tensor, theta: float
) -> Tensor:
    """The cache's probabilities of the tokens wanted, ``[L - 1]``; position t sees what
    was written before its chunk."""
    scores = theta * queries @ keys.T
    token = torch.arange(len(wanted))
    seen = token[None, : len(written)] + 1 < token[:, None] // VIEW.chunk * VIEW.chunk
    shares = scores.masked_fill(~seen, -1e9).softmax(-1) * seen
    return (shares * (written[None] == wanted[:, None])).sum(-1)


@torch.no_grad()
def command(args: Any) -> None:
    model, tokenizer = load_base(args.model, "float32")
    source, validation = open_sources(
        args.data, args.held_out, args.validation, tokenizer, args.seed
    )
    hybrid = Hybrid(model, AllMemConfig(heads=1, head_dim=1, hidden_dim=1))
    count, length = CALIBRATION
    passages = torch.tensor([source.passage(length) for _ in range(count)])
    states = hybrid.hidden(passages, VIEW).flatten(0, 1)
    whiten = torch.from_numpy(input_scale((states.T @ states / len(states)).numpy()))

    judge = Judge(hybrid, validation, books=args.books, length=args.length)
    tokens = torch.tensor([book.tokens for book in judge.books])
    far = slice(2 * VIEW.window, None)
    full, window = (token_losses(hybrid, tokens, view) for view in (TEACHER, VIEW))
    hidden = hybrid.hidden(tokens, VIEW)[:, :-1] @ whiten.float()
    keys, targets = F.normalize(hidden, dim=-1), tokens[:, 1:]
    print(
        f"nats per token from {far.start} on: full attention {full[:, far].mean():.4f}"
        f", window + sinks {window[:, far].mean():.4f}"
    )
    for name, shift in (("own", 0), ("another document's", 1)):
        cached = torch.stack(
            [
                recalled(q, k, w, t, args.theta)
                for q, k, w, t in zip(
                    keys,
                    keys.roll(shift, 0),
                    targets.roll(shift, 0),
                    targets,
                    strict=True,
                )
            ]
        )
        losses = [
            -((1 - share) * (-window).exp() + share * cached).log()[:, far].mean()
            for share in SHARES
        ]
        found = ", ".join(
            f"{share:g}: {loss:.4f}" for share, loss in zip(SHARES, losses, strict=True)
        )
        print(f"{name} cache, by lambda: {found}", flush=True)


if __name__ == "__main__":
    run(configure_parser(), command)
