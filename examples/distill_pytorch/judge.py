"""How well a memory remembers, on texts it was not trained on.

Never by the loss it was trained with: by the negative log-likelihood of natural text
beyond the window, and by what it recalls; each beside the controls that say how much
of it came from what was read.
"""

from dataclasses import replace

import torch
from hybrid import TEACHER, Hybrid, View
from loss import next_token_loss
from texts import HELD_OUT_FACTS, Texts

VIEW = View(window=128, sinks=16, chunk=64)


class Judge:
    """Scores a hybrid on documents that stay the same.

    Args:
        hybrid (Hybrid): the model.
        texts (Texts): held-out texts.
        view (View): window, sinks and chunk.
        books, length (int): natural documents and their tokens.
        recalls, recall_length (int): documents with facts, and with a repeated
            passage, and their tokens.
    """

    def __init__(
        self,
        hybrid: Hybrid,
        texts: Texts,
        view: View = VIEW,
        books: int = 4,
        length: int = 2048,
        recalls: int = 3,
        recall_length: int = 1024,
    ):
        self.hybrid, self.view = hybrid, view
        self.books = [texts.book(length) for _ in range(books)]
        self.facts = [
            texts.facts(recall_length, HELD_OUT_FACTS, count=8) for _ in range(recalls)
        ]
        self.repeats = [texts.repeat(recall_length) for _ in range(recalls)]

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
            "of another document": {"books": round(self._loss(self.books, other), 4)},
        }

    def scores(self, view: View) -> dict[str, float]:
        """Nats per token beyond the window for books and repeated passages, and the
        share of facts that greedy decoding would answer."""
        return {
            "books": round(self._loss(self.books, view), 4),
            "repeats": round(self._loss(self.repeats, view), 4),
            "facts": round(self._recall(view), 4),
        }

    @torch.no_grad()
    def _loss(self, documents, view: View) -> float:
        hybrid, window = self.hybrid, self.view.window
        tokens = torch.tensor([d.tokens for d in documents], device=hybrid.device)
        hidden = hybrid.hidden(tokens, view)[:, window:-1].flatten(0, 1)
        targets = tokens[:, window + 1 :].flatten()
        return next_token_loss(hidden, targets, hybrid.head).mean().item()

    @torch.no_grad()
    def _recall(self, view: View) -> float:
        """Greedy decoding gives an answer if every token of it is the likeliest after
        those before it."""
        found, asked = 0, 0
        for document in self.facts:
            tokens = torch.tensor([document.tokens], device=self.hybrid.device)
            hidden = self.hybrid.hidden(tokens, view)[0]
            for answer in document.answers:
                before = hidden[answer.start - 1 : answer.stop - 1]
                likeliest = (before @ self.hybrid.head.T).argmax(-1)
                found += bool(
                    (likeliest == tokens[0, answer.start : answer.stop]).all()
                )
                asked += 1
        return found / asked
