"""The search for passages that may answer a question."""

from typing import Any

import mlx.core as mx
import numpy as np

from .archive import Archive
from .passage import Passage
from .similarity import LIMIT, Similarity


class Finder:
    """A search by similarity, or by BM25 in documents of more passages than can be
    held.

    Args:
        archive (Archive): the archive of the documents.
        model: the model whose embeddings are compared.
    """

    def __init__(self, archive: Archive, model: Any):
        self.archive, self._model = archive, model
        self._held: tuple[tuple[int, ...], int] | None = None  # documents, passages
        self._ids: list[int] = []
        self._similarity: Similarity | None = None

    def search(self, question: str, k: int, documents: list[int]) -> list[Passage]:
        """The best passages of some documents; see ``Archive.search``."""
        count = self.archive.count(documents)
        if not 0 < count <= LIMIT:
            return self.archive.search(question, k, documents)
        wanted = tuple(documents), count
        if self._held != wanted or self._similarity is None:
            ids, texts = zip(*self.archive.texts(documents), strict=True)
            tokenizer = self.archive.tokenizer
            self._similarity = Similarity(texts, tokenizer, self._embed)
            self._held, self._ids = wanted, list(ids)
        best = self._similarity.best(question, k)
        return self.archive.get(self._ids[i] for i in best)

    def _embed(self, ids: Any) -> np.ndarray:
        rows = self._model.token_embedding(mx.array(ids))
        return np.array(rows.astype(mx.float32))
