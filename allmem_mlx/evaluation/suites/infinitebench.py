"""InfiniteBench (arXiv 2402.13718): questions about whole books, English and Chinese.

Prompts are those that OpenBMB/InfiniteBench gives to open models
(``yarn_mistral_templates``), which end where the answer begins, and are not messages.
Lengths are those of ``src/eval_utils.py``, metrics those of ``src/compute_scores.py``.
"""

from pathlib import Path

from .metrics import character_f1_zh, qa_f1
from .suite import Example, Record, Subset, Suite, best

SUBSETS = {
    "longbook_qa_eng": Subset(
        "Read the book and answer the question. Be very concise in your answer.\n\n"
        "{context}\n\nQuestion: {question}\nAnswer:",
        qa_f1,
        40,
        chat=False,
    ),
    "longbook_qa_chn": Subset(
        "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{question}\n答案：",
        character_f1_zh,
        40,
        chat=False,
    ),
}


def _subset(path: Path) -> str | None:
    return path.stem if path.stem in SUBSETS else None


def _example(name: str, record: Record) -> Example:
    subset, answers = SUBSETS[name], record["answer"]
    return subset.example(name, record, answers, best(subset.metric, answers))


INFINITEBENCH = Suite(
    name="infinitebench",
    subset=_subset,
    example=_example,
    fields={"input": str, "context": str, "answer": list},
    files=", ".join(f"{name}.jsonl" for name in SUBSETS),
)
