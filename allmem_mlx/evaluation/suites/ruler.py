"""RULER (arXiv 2404.06654): synthetic tasks in the files of NVIDIA's generators.

Prompts are in the files. Lengths and metrics are those of NVIDIA/RULER
(``scripts/data/synthetic/constants.py``, ``scripts/eval/synthetic/constants.py``).
"""

import re
from pathlib import Path

from .metrics import string_match_all, string_match_part
from .suite import Example, Record, Suite

# Tokens to generate.
MAX_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


def _subset(path: Path) -> str | None:
    """Generators write ``niah_single_1/validation.jsonl``."""
    for name in (path.stem, path.resolve().parent.name):
        if re.fullmatch(r"(niah|qa)_\w+|vt|cwe|fwe", name):
            return name
    return None


def _example(name: str, record: Record) -> Example:
    kind, outputs = name.partition("_")[0], record["outputs"]
    metric = string_match_part if kind == "qa" else string_match_all
    # What comes before the answer is already a part of it, in some files a field.
    prompt = record["input"] + (record.get("answer_prefix") or "")
    return Example(
        subset=name,
        context=record["input"],
        prompt=prompt,
        answers=outputs,
        max_tokens=MAX_TOKENS[kind],
        chat=False,
        score=lambda response: metric(response, outputs),
    )


RULER = Suite(
    name="ruler",
    subset=_subset,
    example=_example,
    fields={"input": str, "outputs": list},
    files="niah_single_1.jsonl or niah_single_1/validation.jsonl, vt, cwe, fwe, qa_1",
)
