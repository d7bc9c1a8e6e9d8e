"""InfiniteBench (arXiv 2402.13718): questions about whole books, English and Chinese.

Prompts are those that OpenBMB/InfiniteBench gives to open models
(``yarn_mistral_templates``), which end where the answer begins: they are no messages.
Lengths are those of ``src/eval_utils.py``, metrics those of ``src/compute_scores.py``.
"""

from pathlib import Path

from .metrics import character_f1_zh, qa_f1
from .suite import Example, Record, Suite, best

MOST = 40
PROMPTS = {
    "longbook_qa_eng": "Read the book and answer the question. Be very concise in your "
    "answer.\n\n{context}\n\nQuestion: {question}\nAnswer:",
    "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n{context}\n\n"
    "问题：{question}\n答案：",
}
METRICS = {"longbook_qa_eng": qa_f1, "longbook_qa_chn": character_f1_zh}


def _subset(path: Path) -> str | None:
    return path.stem if path.stem in PROMPTS else None


def _example(name: str, record: Record) -> Example:
    context, question = record["context"], record["input"]
    return Example(
        subset=name,
        context=context,
        prompt=PROMPTS[name].format(context=context, question=question),
        answers=record["answer"],
        most=MOST,
        chat=False,
        score=best(METRICS[name], record["answer"]),
        question=question,
    )


INFINITEBENCH = Suite(
    name="infinitebench",
    subset=_subset,
    example=_example,
    fields={"input": str, "context": str, "answer": list},
    files=", ".join(f"{name}.jsonl" for name in PROMPTS),
)
