"""A ranking of passages that also finds similar words, by the model's embeddings.

Each word of a question is compared with the most similar word of a passage (MaxSim,
ColBERT, arXiv 2004.12832), without context:

    score(p) = sum over q of idf(q)^2 · max over t of s(q, t)
    s(q, t)  = 1 if q = t, else 0.7 · clip(cos(v_q, v_t) / 0.4, 0, 1)

q and t are the words of the question and of the passage p, v_w is the mean embedding of
the tokens of " w", less the mean of all words and their two principal components. With
the limit at a cosine of 0.4, a synonym counts nearly as much as the word itself.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .terms import terms

LIMIT = 2000  # passages that are held; beyond, this is hardly better than BM25
OTHER = 0.7  # maximum weight of another word
NEAR = 0.8  # of the best score; worse passages distract a small model
ENOUGH = 0.4  # cosine of two words of the same meaning
COMPONENTS = 2  # principal components that are removed
ITERATIONS = 8
PART = 2048  # words held in single precision

Embed = Callable[[Sequence[int]], np.ndarray]


class Similarity:
    """A ranking of some passages.

    Args:
        passages: their texts, at most :data:`LIMIT`.
        tokenizer: of the model.
        embed: the embeddings of token ids, float32 ``[T, width]``.
    """

    def __init__(self, passages: Iterable[str], tokenizer: Any, embed: Embed):
        self._tokenizer, self._embed = tokenizer, embed
        self._numbers: dict[str, int] = {}
        flat: list[int] = []
        starts: list[int] = []
        for text in passages:
            starts.append(len(flat))
            words = dict.fromkeys(terms(text)) or [""]
            flat += (self._numbers.setdefault(x, len(self._numbers)) for x in words)
        self._flat, self._starts = np.array(flat), np.array(starts)
        self._seen = np.bincount(self._flat, minlength=len(self._numbers))
        words = list(self._numbers)
        self._mean: Any = np.float32(0)
        # In half precision, and a part at a time: an embedding may be wide.
        self._words = np.concatenate(
            [
                self._vectors(words[i : i + PART]).astype(np.float16)
                for i in range(0, len(words), PART)
            ]
        )
        self._mean = self._words.mean(0, dtype=np.float32)
        self._main = self._principal(COMPONENTS)
        for part in self._parts():
            part[:] = self._unit(part)

    def best(self, question: str, k: int) -> list[int]:
        """The best passages for a question, in order.

        Args:
            question (str): the question.
            k (int): maximum number of passages.

        Returns:
            list: their indices; none with less than 0.8 of the best score.
        """
        words = list(dict.fromkeys(terms(question)))
        if not words:
            return []
        wanted = self._unit(self._vectors(words))
        count = len(self._starts)
        score, nearest = np.zeros(count), np.zeros(count)
        for word, vector in zip(words, wanted, strict=True):
            cosine = np.concatenate([part @ vector for part in self._parts()])
            same = OTHER * np.clip(cosine / ENOUGH, 0, 1)
            seen = 0
            if (known := self._numbers.get(word)) is not None:
                same[known], seen = 1, self._seen[known]
            weight = np.log(1 + (count - seen + 0.5) / (seen + 0.5)) ** 2
            found = np.maximum.reduceat(same[self._flat], self._starts)
            score += weight * found
            nearest = np.maximum(nearest, found)
        score[nearest < OTHER] = 0  # no word is similar
        best = np.argsort(-score, kind="stable")[:k]
        return [int(i) for i in best if score[i] >= max(NEAR * score[best[0]], 1e-9)]

    def _vectors(self, words: list[str]) -> np.ndarray:
        """The mean embedding of each word's tokens."""
        ids = [self._tokens(word) for word in words]
        sizes = np.array([len(x) for x in ids])
        flat = [token for x in ids for token in x]
        known, places = np.unique(flat, return_inverse=True)
        rows = self._embed(known.tolist())
        begins = np.cumsum(sizes) - sizes
        means: np.ndarray = np.add.reduceat(rows[places], begins) / sizes[:, None]
        return means

    def _parts(self) -> list[np.ndarray]:
        return [self._words[i : i + PART] for i in range(0, len(self._words), PART)]

    def _principal(self, count: int) -> np.ndarray:
        """The first principal components of all words, by orthogonal iteration."""
        rng = np.random.default_rng(0)
        found = rng.standard_normal((self._words.shape[1], count), np.float32)
        for _ in range(ITERATIONS):
            images = [
                (x - self._mean).T @ ((x - self._mean) @ found) for x in self._parts()
            ]
            found = np.linalg.qr(sum(images))[0]
        return found

    def _tokens(self, word: str) -> list[int]:
        """The tokens of a word after a space, which some tokenizers add themselves."""
        forms = [
            self._tokenizer.encode(text, add_special_tokens=False)
            for text in (f" {word}", word)
        ]
        return min(forms, key=len) or forms[0] or [0]

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of length 1, without the mean and the principal components."""
        vectors = vectors - self._mean
        vectors -= (vectors @ self._main) @ self._main.T
        norms: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / (norms + 1e-9)
