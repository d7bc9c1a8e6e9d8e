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
from .loss import next_token_loss

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
def answered(hybrid: Hybrid, document: Document, view: View) -> int:
    """The number of a document's questions that greedy decoding answers: every token of
    the answer is the likeliest after those before it."""
    tokens = torch.tensor([document.tokens], device=hybrid.device)
    hidden = hybrid.hidden(tokens, view)[0]
    correct = 0
    for answer, _ in document.answers:
        logits = hidden[answer.start - 1 : answer.stop - 1] @ hybrid.head.T
        correct += torch.equal(logits.argmax(-1), tokens[0, answer.start : answer.stop])
    return correct


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
        correct = sum(answered(self.hybrid, d, view) for d in self.facts)
        return {
            **self._texts(view),
            "repeats": self._loss(self.repeats, view),
            "facts": round(correct / sum(len(d.answers) for d in self.facts), 4),
        }

    def _texts(self, view: View) -> dict[str, float]:
        return {kind: self._loss(x, view) for kind, x in self.texts.items()}

    def _loss(self, documents: list[Document], view: View) -> float:
        tokens = torch.tensor([d.tokens for d in documents])
        losses = token_losses(self.hybrid, tokens, view)
        return round(losses[:, VIEW.window :].mean().item(), 4)
