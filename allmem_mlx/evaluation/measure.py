"""The measurements of ``evaluate``: each loads the model that the command line asks
for, and returns it with its result and the table to print."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..chat_template import Template
from ..cli.flags import load_model
from ..errors import AllMemError
from ..model import Model
from . import likelihood, lookup_recall, lookup_summary, recall, tables
from .bars import bar
from .columns import SavedAnswers
from .lookups import TemporaryArchives
from .suites import run as suites
from .systems import systems
from .texts import read_text, text_files

Measured = tuple[Model, dict[str, Any], str]


def measure_text(args: argparse.Namespace) -> Measured:
    """Likelihood by position."""
    files = text_files(args.text)
    model, tokenizer = load_model(args)
    window = model.allmem.window
    start = Template.plain(tokenizer).start
    texts = [read_text(file, tokenizer, args.tokens) for file in files]
    documents = [(start + text.tokens)[: args.tokens] for text in texts]
    for text, tokens in zip(texts, documents, strict=True):
        if len(tokens) <= window:
            raise AllMemError(
                f"{str(text.file)!r} gives {len(tokens)} tokens; more than the window, "
                f"{window}, are needed: a longer text, more --tokens or a smaller "
                "--window"
            )
    if len(set(map(tuple, documents))) < max(2, len(documents)):
        raise AllMemError(
            "one control reads the memory of another document; give at least two "
            "texts, all of them different"
        )
    compared = systems(model)
    losses: dict[str, list[np.ndarray]] = {system.name: [] for system in compared}
    with bar(len(compared) * sum(map(len, documents))) as done:
        for i, tokens in enumerate(documents):
            other = documents[(i + 1) % len(documents)]
            for system in compared:
                losses[system.name].append(
                    likelihood.losses(system, model, tokens, other, done.update)
                )
    summary = likelihood.summary(losses, window, args.seed)
    for document, text in zip(summary["documents"], texts, strict=True):
        document |= text.record()
    return model, summary, tables.likelihood(summary)


def measure_recall(args: argparse.Namespace) -> Measured:
    """Recall by generation."""
    if args.passages is not None:
        return measure_lookups(args)
    files = text_files(args.text or [])
    model, tokenizer = load_model(args)
    books = [read_text(file, tokenizer) for file in files]
    groups = [
        group
        for name in args.recall
        for group in recall.make_tasks(
            name, tokenizer, args.distances, args.samples, args.seed, books
        )
    ]
    with bar() as done:
        answers = recall.recall(model, tokenizer, groups, done.update)
    summary = recall.summary(answers)
    summary["documents"] = [book.record() for book in books]
    return model, summary, tables.recall(summary)


def measure_lookups(args: argparse.Namespace) -> Measured:
    """Recall by generation, with passages."""
    files = text_files(args.text)
    model, tokenizer = load_model(args)
    saved = SavedAnswers(Path(args.states) if args.states else None)
    sets = [x for x in args.recall if not (args.search_only and x == "unanswerable")]
    with TemporaryArchives(tokenizer) as archives:
        stack = lookup_recall.haystack(
            files, tokenizer, archives, sets, args.distances, args.samples, args.seed
        )
        found, times = lookup_recall.search(
            model, stack, sets, args.passages, args.seed
        )
    groups, answers = lookup_recall.groups(found, sets), None
    if not args.search_only:
        answers = lookup_recall.ask(model, tokenizer, stack.planted, groups, saved)
    summary = {"passages": args.passages, "haystack": stack.record}
    summary |= {"ms per query": times}
    summary |= lookup_summary.summary(groups, answers, stack.planted, args.seed)
    return model, summary, f"{tables.lookups(summary)}\n{tables.searched(summary)}"


def measure_suite(args: argparse.Namespace) -> Measured:
    """The score of a public suite."""
    examples = suites.load(args.suite, args.data, args.limit)
    model, tokenizer = load_model(args)
    with bar() as done:
        answers = suites.run(
            model, tokenizer, examples, args.max_length, done.update, args.passages
        )
    summary = suites.summary(answers, args.seed)
    return model, summary, tables.suite(summary)


MEASURES = {"text": measure_text, "recall": measure_recall, "suite": measure_suite}
