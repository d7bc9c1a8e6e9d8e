"""The search for passages that may answer a question."""

from typing import Any

import mlx.core as mx
import numpy as np

from .archive import Archive, Passage
from .similarity import MOST, Similarity


class Finder:
    """A search that also finds other words than the question's, if there are no more
    passages than can be held; else BM25.

    Args:
        archive (Archive): where the passages are.
        model: whose embeddings tell what is alike.
    """

    def __init__(self, archive: Archive, model: Any):
        self.archive, self._model = archive, model
        self._of: tuple[tuple[int, ...], int] | None = None
        self._ids: list[int] = []
        self._similarity: Similarity | None = None

    def search(self, question: str, k: int, documents: list[int]) -> list[Passage]:
        """The best passages of some documents; see :meth:`Archive.search`."""
        count = self.archive.count(documents)
        if not 0 < count <= MOST:
            return self.archive.search(question, k, documents)
        if self._of != (tuple(documents), count) or self._similarity is None:
            ids, texts = zip(*self.archive.bodies(documents), strict=True)
            tokenizer = self.archive.tokenizer
            self._similarity = Similarity(texts, tokenizer, self._embed)
            self._of, self._ids = (tuple(documents), count), list(ids)
        best = self._similarity.best(question, k)
        return self.archive.get(self._ids[i] for i in best)

    def _embed(self, ids: Any) -> np.ndarray:
        rows = self._model.model.embed_tokens(mx.array(ids))
        return np.array(rows.astype(mx.float32))
