"""LongBench (arXiv 2308.14508): the six subsets that the AllMem paper reports.

Prompts, lengths and scoring are those of THUDM/LongBench (``LongBench/config``,
``pred.py``, ``eval.py``), the misprint "asconcisely" included.
"""

from pathlib import Path

from .metrics import qa_f1, rouge_l, rouge_l_zh
from .suite import Example, Record, Subset, Suite, best

_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do "
    "not output any other words.\n\nThe following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do "
    "not output any other words.\n\nQuestion: {input}\nAnswer:"
)


SUBSETS = {
    "dureader": Subset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n"
        "请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        rouge_l_zh,
        128,
    ),
    "hotpotqa": Subset(_PASSAGES, qa_f1, 32),
    "musique": Subset(_PASSAGES, qa_f1, 32),
    "narrativeqa": Subset(
        "You are given a story, which can be either a novel or a movie script, and a "
        "question. Answer the question asconcisely as you can, using a single phrase "
        "if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, "
        "answer the question based on the story asconcisely as you can, using a single "
        "phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\n"
        "Answer:",
        qa_f1,
        128,
    ),
    "qmsum": Subset(
        "You are given a meeting transcript and a query containing a question or "
        "instruction. Answer the query in one or more sentences.\n\nTranscript:\n"
        "{context}\n\nNow, answer the query based on the above meeting transcript in "
        "one or more sentences.\n\nQuery: {input}\nAnswer:",
        rouge_l,
        512,
    ),
    "triviaqa": Subset(
        "Answer the question based on the given passage. Only give me the answer and "
        "do not output any other words. The following are some examples.\n\n{context}"
        "\n\n{input}",
        qa_f1,
        32,
        chat=False,
    ),
}


def _subset(path: Path) -> str | None:
    return path.stem if path.stem in SUBSETS else None


def _example(name: str, record: Record) -> Example:
    subset, answers = SUBSETS[name], record["answers"]
    score = best(subset.metric, answers)
    if name == "triviaqa":  # after examples of its form, a model goes on with more
        return subset.example(
            name, record, answers, lambda x: score(x.lstrip("\n").split("\n")[0])
        )
    return subset.example(name, record, answers, score)


LONGBENCH = Suite(
    name="longbench",
    subset=_subset,
    example=_example,
    fields={"input": str, "context": str, "answers": list},
    files=", ".join(f"{name}.jsonl" for name in SUBSETS),
)
