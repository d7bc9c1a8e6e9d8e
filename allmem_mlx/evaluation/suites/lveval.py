"""LV-Eval (arXiv 2402.05136): 11 subsets at five lengths, with confusing facts.

Prompts, lengths and scoring are those of infinigence/LVEval (``config.py``,
``metrics.py``, ``evaluation.py``): only the first answer counts, and F1 counts only for
a response that has enough of the answer's keywords.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import AllMemError
from . import lveval_words
from .metrics import (
    normalize,
    normalize_zh,
    package,
    qa_f1,
    qa_f1_zh,
    rouge_l,
    words_zh,
)
from .suite import Example, Record, Subset, Suite

Metric = Callable[[str, str, str | None], float]


def _recall(
    response: Sequence[str], keys: Sequence[str], blacklist: list[str]
) -> float:
    common = Counter(response) & Counter(keys)
    return sum(n for word, n in common.items() if word not in blacklist) / len(keys)


def keyword_f1(response: str, truth: str, keywords: str | None) -> float:
    """F1 over words; 0 if less than a fifth of the keywords was said."""
    keys = normalize(keywords or "").split()
    if keys and _recall(normalize(response).split(), keys, lveval_words.ENGLISH) < 0.2:
        return 0.0
    return qa_f1(response, truth)


def keyword_f1_zh(response: str, truth: str, keywords: str | None) -> float:
    """F1 over jieba's words; 0 if less than two fifths of the keywords were said,
    or of the answer's words where there are no keywords."""
    keys = words_zh(keywords or truth)
    if keys and _recall(words_zh(response), keys, lveval_words.CHINESE) < 0.4:
        return 0.0
    return qa_f1_zh(response, truth)


def rouge_l_zh_blacklist(response: str, truth: str, keywords: str | None) -> float:
    """ROUGE-L over jieba's words without those of the blacklist."""

    def words(text: str) -> str:
        cut = package("jieba").cut
        # Twice, as the original does: the spaces are words then, and become empty.
        twice = cut(" ".join(cut(text, cut_all=False)), cut_all=False)
        kept = [x for x in map(normalize_zh, twice) if x not in lveval_words.CHINESE]
        return " ".join(kept)

    return rouge_l(words(response), words(truth))


def _plain(metric: Callable[[str, str], float]) -> Metric:
    return lambda response, truth, keywords: metric(response, truth)


def _english(first: str, which: str) -> str:
    only = (
        f"Questions and answers are only relevant to {which}. Only give me the answer "
        "and do not output any other explanation and evidence."
    )
    return (
        f"{first} based on the given passages. {only}\n\nArticle: {{context}}\n\n"
        f"Please answer the following question based on the above passages. {only}\n\n"
        "Question: {input}\nAnswer:"
    )


def _chinese(now: str) -> str:
    return (
        "请根据下面给定的文章回答问题，问题和答案只与其中一篇文章有关。\n\n"
        f"文章：{{context}}\n\n{now}基于上述文章回答下面的问题，"
        "问题和答案只与其中一篇文章有关。\n\n问题：{input}\n回答："
    )


_ONE_PASSAGE = Subset(
    _english("Please answer the following question", "one passage"), keyword_f1, 64
)
_ONLY_ZH = (
    "问题和答案只与其中一篇文章有关。"
    "只需要直接给出问题的答案，不要输出其他任何解释和证据。"
)
SUBSETS = {
    "hotpotwikiqa_mixup": Subset(
        _english("Answer the question", "some passages"), keyword_f1, 64
    ),
    "loogle_SD_mixup": _ONE_PASSAGE,
    "loogle_CR_mixup": _ONE_PASSAGE,
    "loogle_MIR_mixup": _ONE_PASSAGE,
    "multifieldqa_en_mixup": _ONE_PASSAGE,
    "multifieldqa_zh_mixup": Subset(
        f"请阅读以下文章并用中文回答问题，{_ONLY_ZH}\n\n文章：{{context}}\n\n"
        f"请基于上面的文章回答下面的问题，{_ONLY_ZH}\n\n问题：{{input}}\n回答：",
        keyword_f1_zh,
        64,
    ),
    "factrecall_en": Subset(
        "Please answer the following questions based on the given article.\n\n"
        "Article: {context}\n\nPlease answer the following questions based on the "
        "above article.\n\nQuestion: {input}\nAnswer:",
        _plain(qa_f1),
        16,
    ),
    "factrecall_zh": Subset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n"
        "现在请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        _plain(qa_f1_zh),
        16,
    ),
    "cmrc_mixup": Subset(_chinese("现在请"), keyword_f1_zh, 64),
    "lic_mixup": Subset(_chinese("请现在"), keyword_f1_zh, 64),
    "dureader_mixup": Subset(_chinese("现在请"), rouge_l_zh_blacklist, 64),
}


def _subset(path: Path) -> str | None:
    """A subset at one length: ``cmrc_mixup_16k``."""
    name = re.sub(r"_\d{1,3}k$", "", path.stem)
    return path.stem if name in SUBSETS and name != path.stem else None


def _example(name: str, record: Record) -> Example:
    subset = SUBSETS[name.rpartition("_")[0]]
    truth, keywords = record["answers"][0], record.get("answer_keywords")
    if keywords is not None and not isinstance(keywords, str):
        raise AllMemError(f"{name}: answer_keywords is {keywords!r}; it must be a text")
    return subset.example(
        name,
        record,
        record["answers"],
        lambda response: subset.metric(response, truth, keywords),
    )


LVEVAL = Suite(
    name="lveval",
    subset=_subset,
    example=_example,
    fields={"input": str, "context": str, "answers": list},
    files="cmrc_mixup_16k.jsonl and others, a subset and a length",
)
