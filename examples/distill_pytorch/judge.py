"""How well a memory remembers, on texts it was not trained on.

Never by the loss it was trained with: by the negative log-likelihood of natural text
beyond the window, and by what it recalls; each beside the controls that say how much
of it came from what was read.
"""

from dataclasses import replace

import torch
from hybrid import TEACHER, Hybrid, View
from loss import next_token_loss
from torch import Tensor

from allmem_mlx.distillation.documents import Document, Source

VIEW = View(window=128, sinks=16, chunk=64)


@torch.no_grad()
def token_losses(hybrid: Hybrid, tokens: Tensor, view: View) -> Tensor:
    """Negative log-likelihoods ``[B, L - 1]`` of the tokens after the first."""
    tokens = tokens.to(hybrid.device)
    hidden = hybrid.hidden(tokens, view)[:, :-1].flatten(0, 1)
    losses = next_token_loss(hidden, tokens[:, 1:].flatten(), hybrid.head)
    return losses.view(len(tokens), -1).cpu()


@torch.no_grad()
def answered(hybrid: Hybrid, document: Document, view: View) -> int:
    """Questions of a document that greedy decoding answers: those of which every token
    is the likeliest after the ones before it."""
    tokens = torch.tensor([document.tokens], device=hybrid.device)
    hidden = hybrid.hidden(tokens, view)[0]
    found = 0
    for answer in document.answers:
        logits = hidden[answer.start - 1 : answer.stop - 1] @ hybrid.head.T
        found += torch.equal(logits.argmax(-1), tokens[0, answer.start : answer.stop])
    return found


class Judge:
    """Scores a hybrid on documents that stay the same.

    Args:
        hybrid (Hybrid): the model.
        source (Source): of held-out texts.
        view (View): window, sinks and chunk.
        books, length (int): natural documents and their tokens.
        recalls, recall_length (int): documents with facts, and with a repeated
            passage, and their tokens.
    """

    def __init__(
        self,
        hybrid: Hybrid,
        source: Source,
        view: View = VIEW,
        books: int = 4,
        length: int = 1536,
        recalls: int = 2,
        recall_length: int = 1024,
    ):
        self.hybrid, self.view = hybrid, view
        self.books = [Document(source.passage(length)) for _ in range(books)]
        self.facts = [
            source.facts(recall_length, count=8, held_out=True) for _ in range(recalls)
        ]
        self.repeats = [source.repeat(recall_length) for _ in range(recalls)]

    def base(self) -> dict:
        """Full attention, and window + sinks without memory."""
        return {"full": self.scores(TEACHER), "window": self.scores(self.view)}

    def memory(self) -> dict:
        """With the memory, and with its controls."""
        view = replace(self.view, memory=True)
        other = replace(view, swap=True)
        return {
            "memory": self.scores(view),
            "never written": self.scores(replace(view, write=False)),
            "of another document": {"books": self._loss(self.books, other)},
        }

    def scores(self, view: View) -> dict[str, float]:
        """Nats per token beyond the window for books and repeated passages, and the
        share of facts that greedy decoding would answer."""
        found = sum(answered(self.hybrid, d, view) for d in self.facts)
        return {
            "books": self._loss(self.books, view),
            "repeats": self._loss(self.repeats, view),
            "facts": round(found / sum(len(d.answers) for d in self.facts), 4),
        }

    def _loss(self, documents: list[Document], view: View) -> float:
        tokens = torch.tensor([d.tokens for d in documents])
        losses = token_losses(self.hybrid, tokens, view)
        return round(losses[:, self.view.window :].mean().item(), 4)
