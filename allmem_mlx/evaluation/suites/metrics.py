"""The metrics of LongBench, InfiniteBench, LV-Eval and RULER, as their own code
computes them: the same packages, the same order of steps, the same corner cases.

LongBench: THUDM/LongBench, ``LongBench/metrics.py``. InfiniteBench:
OpenBMB/InfiniteBench, ``src/compute_scores.py``. LV-Eval: infinigence/LVEval,
``metrics.py``. RULER: NVIDIA/RULER, ``scripts/eval``. All scores are from 0 to 1.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...errors import import_library

PUNCTUATION = set(
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～"
    + "｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    + "–—‘’‛“”„‟…‧﹏."
)


@functools.cache
def package(name: str) -> Any:
    """A package of the ``eval`` extra.

    Raises:
        AllMemError: if it is not installed.
    """
    module = import_library(name, f"this metric needs the package {name}", "eval")
    if name == "jieba":
        module.setLogLevel("WARNING")  # it logs its dictionary on stderr
    return module


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalize_zh(text: str) -> str:
    """Lower case, without punctuation, Chinese too, and white space."""
    return "".join("".join(c for c in text.lower() if c not in PUNCTUATION).split())


def words_zh(text: str) -> list[str]:
    """Words of a Chinese text, normalised, without empty ones."""
    words = package("jieba").cut(text, cut_all=False)
    return [word for word in map(normalize_zh, words) if word]


def f1(response: Sequence[str], truth: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens, as bags."""
    same = sum((Counter(response) & Counter(truth)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(response), same / len(truth)
    return 2 * precision * recall / (precision + recall)


def qa_f1(response: str, truth: str) -> float:
    """F1 over words (LongBench, InfiniteBench, LV-Eval)."""
    return f1(normalize(response).split(), normalize(truth).split())


def qa_f1_zh(response: str, truth: str) -> float:
    """F1 over jieba's words (LongBench, LV-Eval)."""
    return f1(words_zh(response), words_zh(truth))


def character_f1_zh(response: str, truth: str) -> float:
    """F1 over characters (InfiniteBench)."""
    return f1(normalize_zh(response), normalize_zh(truth))


def rouge_l(response: str, truth: str) -> float:
    """F of ROUGE-L; 0 if the package ``rouge`` refuses the texts, such as an empty one
    (LongBench)."""
    try:
        scores = package("rouge").Rouge().get_scores([response], [truth], avg=True)
    except (ValueError, RecursionError):
        return 0.0
    return scores["rouge-l"]["f"]


def rouge_l_zh(response: str, truth: str) -> float:
    """The same over jieba's words (LongBench)."""
    cut = package("jieba").cut
    return rouge_l(*(" ".join(cut(text, cut_all=False)) for text in (response, truth)))


def matches(response: str, outputs: Sequence[str]) -> list[bool]:
    """For each of RULER's outputs, ``True`` if it occurs in a response."""
    text = re.sub(r"[\x00-\x1f]", "\n", response.strip()).strip().lower()
    return [output.lower() in text for output in outputs]


def string_match_all(response: str, outputs: Sequence[str]) -> float:
    """Share of the outputs that occur in the response (RULER)."""
    found = matches(response, outputs)
    return sum(found) / len(found)


def string_match_part(response: str, outputs: Sequence[str]) -> float:
    """1 if any output occurs in the response, else 0 (RULER)."""
    return float(any(matches(response, outputs)))
