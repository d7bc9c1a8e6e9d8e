"""Validation: how well a memory remembers texts that it was not trained on.

The scores are not the training loss. They are the negative log-likelihood of natural
text and of repeated passages beyond the window, and the share of planted facts that are
recalled, each beside the controls.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..documents import Document, Source
from .hybrid import TEACHER, Hybrid, View
from .loss import answer_losses, next_token_loss

VIEW = View(window=128, sinks=16, chunk=64)
TEXTS = 4, 1536  # documents of natural text, or twice as many as kinds; their tokens
RECALLS = 2, 2048  # the same with facts, and with a repeated passage
FACTS = 16  # in a document


@torch.no_grad()
def token_losses(hybrid: Hybrid, tokens: Tensor, view: View) -> Tensor:
    """Negative log-likelihoods ``[B, L - 1]`` of the tokens after the first."""
    tokens = tokens.to(hybrid.device)
    hidden = hybrid.hidden(tokens, view)[:, :-1].flatten(0, 1)
    losses = next_token_loss(hidden, tokens[:, 1:].flatten(), hybrid.head)
    return losses.view(len(tokens), -1).cpu()


@torch.no_grad()
def answered(
    hybrid: Hybrid, documents: list[Document], view: View
) -> tuple[Tensor, list[bool]]:
    """``-log p`` of each token of the answers in documents, and for each question
    whether greedy decoding answers it: every token of the answer is the likeliest after
    those before it."""
    losses, right = [], []
    for document in documents:
        tokens = torch.tensor([document.tokens], device=hybrid.device)
        hidden = hybrid.hidden(tokens, view)[0]
        of_tokens, found = answer_losses(hidden, document.whole(), hybrid.head)
        losses.append(of_tokens)
        right += [answer for _, answer in found]
    return torch.cat(losses), right


class Judge:
    """Scores a hybrid on documents that stay the same.

    Args:
        hybrid (Hybrid): the model.
        source (Source): of held-out texts.
    """

    def __init__(self, hybrid: Hybrid, source: Source):
        self.hybrid = hybrid
        count, length = TEXTS
        if len(source.kinds) > 1:
            count = 2
        self.texts = {
            kind or "texts": [
                Document(source.passage(length, kind)) for _ in range(count)
            ]
            for kind in source.kinds
        }
        count, length = RECALLS
        self.facts = [
            source.facts(length, length, FACTS, held_out=True) for _ in range(count)
        ]
        self.repeats = [source.repeat(length) for _ in range(count)]

    def base(self) -> dict:
        """Scores of full attention, and of window + sinks without a memory."""
        return {"full": self.scores(TEACHER), "window": self.scores(VIEW)}

    def memory(self) -> dict:
        """Scores of the memory, and of its controls."""
        view = replace(VIEW, memory=True)
        other = replace(view, swap=True)
        return {
            "memory": self.scores(view),
            "never written": self.scores(replace(view, write=False)),
            "of another document": self._texts(other),
        }

    def scores(self, view: View) -> dict[str, float]:
        """Nats per token beyond the window in texts of each kind and in repeated
        passages, and the share of facts that greedy decoding finds."""
        _, right = answered(self.hybrid, self.facts, view)
        return {
            **self._texts(view),
            "repeats": self._loss(self.repeats, view),
            "facts": round(sum(right) / len(right), 4),
        }

    def _texts(self, view: View) -> dict[str, float]:
        return {kind: self._loss(x, view) for kind, x in self.texts.items()}

    def _loss(self, documents: list[Document], view: View) -> float:
        tokens = torch.tensor([d.tokens for d in documents])
        losses = token_losses(self.hybrid, tokens, view)
        return round(losses[:, VIEW.window :].mean().item(), 4)
