"""LongBench (arXiv 2308.14508): the six subsets that the AllMem paper reports.

Prompts, lengths and scoring are those of THUDM/LongBench (``LongBench/config``,
``pred.py``, ``eval.py``), the misprint "asconcisely" included.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metrics import qa_f1, rouge_l, rouge_l_zh
from .suite import Example, Record, Suite, best

_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do "
    "not output any other words.\n\nThe following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do "
    "not output any other words.\n\nQuestion: {input}\nAnswer:"
)


@dataclass(frozen=True)
class _Subset:
    prompt: str
    most: int
    metric: Any
    few_shot: bool = False  # no chat template, and only the first line counts


SUBSETS = {
    "dureader": _Subset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n"
        "请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
        rouge_l_zh,
    ),
    "hotpotqa": _Subset(_PASSAGES, 32, qa_f1),
    "musique": _Subset(_PASSAGES, 32, qa_f1),
    "narrativeqa": _Subset(
        "You are given a story, which can be either a novel or a movie script, and a "
        "question. Answer the question asconcisely as you can, using a single phrase "
        "if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, "
        "answer the question based on the story asconcisely as you can, using a single "
        "phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\n"
        "Answer:",
        128,
        qa_f1,
    ),
    "qmsum": _Subset(
        "You are given a meeting transcript and a query containing a question or "
        "instruction. Answer the query in one or more sentences.\n\nTranscript:\n"
        "{context}\n\nNow, answer the query based on the above meeting transcript in "
        "one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        rouge_l,
    ),
    "triviaqa": _Subset(
        "Answer the question based on the given passage. Only give me the answer and "
        "do not output any other words. The following are some examples.\n\n{context}"
        "\n\n{input}",
        32,
        qa_f1,
        few_shot=True,
    ),
}


def _subset(path: Path) -> str | None:
    return path.stem if path.stem in SUBSETS else None


def _example(name: str, record: Record) -> Example:
    subset = SUBSETS[name]
    metric = best(subset.metric, record["answers"])
    score = metric
    if subset.few_shot:

        def score(said: str) -> float:
            return metric(said.lstrip("\n").split("\n")[0])

    return Example(
        subset=name,
        context=record["context"],
        prompt=subset.prompt.format(context=record["context"], input=record["input"]),
        answers=record["answers"],
        most=subset.most,
        chat=not subset.few_shot,
        score=score,
        question=record["input"],
    )


LONGBENCH = Suite(
    name="longbench",
    subset=_subset,
    example=_example,
    fields={"input": str, "context": str, "answers": list},
    files=", ".join(f"{name}.jsonl" for name in SUBSETS),
)
