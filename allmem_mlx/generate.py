"""Read a document of any length and go on from it, or answer a question about it."""

import argparse
import itertools
import json
import os
import sys
import types
from contextlib import closing, suppress
from typing import Any

from .cli.archive_flags import (
    archive_beside,
    lookup_options,
    open_archive,
    print_sources,
    sources_record,
    wants_archive,
    warn_of_lost,
)
from .cli.flags import (
    add_eos_tokens,
    load_model,
    make_sampler,
    make_template,
)
from .cli.generate_flags import check_args, questions, setup_arg_parser
from .cli.progress import PIECE, Progress
from .cli.run import ENDS, deaf, hear_signals, run
from .documents import Document
from .errors import SettingError, warn

# Sampling where a text is written on: its most likely continuation repeats itself.
WRITING_ON = {"temp": 0.8, "top_p": 0.95}


def generate(args: argparse.Namespace) -> None:
    check_args(args)
    messages = questions(args)
    document = None
    if args.prompt_file is not None:
        document = Document(args.prompt_file, piece=PIECE)
        for note in document.notes:
            warn(note)

    model, tokenizer = load_model(args)
    add_eos_tokens(tokenizer, args.extra_eos_token)
    sampler = make_sampler(args, tokenizer, **({} if messages else WRITING_ON))
    conversation = start(args, model, tokenizer, bool(messages))
    session = conversation.session
    if document is not None:
        (index_only if args.index_only else read)(args, conversation, document)
        for warning in document.warnings:
            warn(warning)
    elif session.state.tokens and args.system_prompt is not None:
        raise SettingError("--system-prompt comes before everything that was read")
    elif args.save_state is not None:
        save(args, session)

    options = {"max_tokens": args.max_tokens, "sampler": sampler, "stop": args.stop}
    for message in messages:
        respond(args, conversation, message, len(messages) > 1, **options)
    if not messages and args.save_state is not None:
        print_result(args, session.read_stats())
    elif not messages and not args.index_only:
        respond(args, conversation, None, **options)


def start(
    args: argparse.Namespace, model: Any, tokenizer: Any, has_messages: bool
) -> Any:
    """A conversation in the state to start from, with the archive to look up in."""
    from . import state as states
    from .chat_template import Template
    from .conversation import Conversation
    from .session import Session

    file = args.load_state
    if file is None and args.save_state is not None and os.path.exists(args.save_state):
        file = args.save_state
    state = states.new(model) if file is None else states.load(file, model)
    if args.ignore_chat_template or not (has_messages or args.save_state):
        template = Template.plain(tokenizer)
    else:
        template = make_template(args, tokenizer)
    window = model.allmem.window
    if (args.passage_tokens or 0) > window:
        raise SettingError(f"--passage-tokens must be less than the window, {window}")
    archive = open_archive(args, tokenizer, state) if wants_archive(args) else None
    if archive is None and args.load_state is not None and not args.no_archive:
        warn_of_lost(archive_beside(args.load_state), state)
    session = Session(model, tokenizer, state, archive=archive)
    return Conversation(session, template, args.allow_special_tokens)


def index(args: argparse.Namespace, conversation: Any, document: Document) -> Any:
    """Adds a document to the archive, from which it can then be read."""
    from .archive.indexing import IndexedDocument

    session, trusted = conversation.session, args.allow_special_tokens
    begun = next(iter(session.state.documents), None)
    indexed = IndexedDocument(session.archive, document, begun, trusted)
    known = session.archive.entry(indexed.key) is not None
    if session.state.tokens and indexed.ahead and not known:
        # Refused before it is added, if the state has read something else.
        again = Document(args.prompt_file).pieces(session.tokenizer, trusted)
        conversation.check_resumed(again)
    with closing(Progress(document)) as progress:
        indexed.index(progress.indexed)
    return indexed


def index_only(args: argparse.Namespace, conversation: Any, document: Document) -> None:
    """Adds a document to the archive, to be looked up without being read."""
    indexed = index(args, conversation, document)
    if not indexed.ahead:  # a pipe is added as it comes
        for _ in indexed:
            pass
    conversation.session.state.add_document(indexed.key)


def read(args: argparse.Namespace, conversation: Any, document: Document) -> None:
    """Reads a document and saves the state at its end, and as often as was asked for.

    Whatever ends this early, Ctrl-C, a signal or an error, what was read until then is
    saved.
    """
    session = conversation.session
    if session.archive is not None:
        pieces = index(args, conversation, document)
    else:
        pieces = document.pieces(session.tokenizer, args.allow_special_tokens)
    hear_signals(*ENDS)
    before, saved = session.state.read, 0
    blocks = conversation.read(pieces, resume=True, step=args.prefill_step_size)
    try:
        with closing(Progress(document)) as progress:
            if (tokens := getattr(pieces, "tokens", None)) is not None:
                progress.expect(tokens - session.state.tokens)
            for done in blocks:
                progress(done)
                if args.checkpoint_every and done - saved >= args.checkpoint_every:
                    save(args, session)
                    saved = done
        if args.save_state is not None:
            save(args, session)
    except BaseException:
        if args.save_state is not None and session.state.read > before:
            with deaf():
                save(args, session)
            with suppress(OSError):  # the terminal is closed
                print(
                    f"\n{session.state.read} tokens are in {args.save_state!r}; the "
                    "same command continues from there",
                    file=sys.stderr,
                )
        raise


def save(args: argparse.Namespace, session: Any) -> None:
    """Saves the state, after the archive, which then holds all that the state has."""
    from . import state as states

    if session.archive is not None:
        session.archive.commit()
    states.save(session.state, args.save_state, session.model, args.half_window)


def respond(
    args: argparse.Namespace,
    conversation: Any,
    message: str | None,
    repeat: bool = False,
    **options: Any,
) -> None:
    """Prints a response to a message, which is repeated before it if there are several;
    without a message, a continuation of the document."""
    import mlx.core as mx

    session = conversation.session
    if args.seed is not None:  # for each, so that it is answered as if alone
        mx.random.seed(args.seed)
    if message is None:
        responses = session.fork().generate(**options)
    else:
        responses = session.ask(
            message,
            template=conversation.template,
            allow_special_tokens=args.allow_special_tokens,
            **options,
            **lookup_options(args),
        )
    first, answer = next(responses), ""
    if args.verbose:
        print("=" * 10)
        if repeat:
            print(f"{message}\n")
    for response in itertools.chain([first], responses):
        answer += response.text
        print(response.text, end="", flush=True)
    print()
    if args.verbose:
        print_sources(response.lookup, message, answer, session.archive)
        print("=" * 10)
    print_result(args, response, answer)


def print_result(args: argparse.Namespace, response: Any, answer: str = "") -> None:
    """Prints the statistics, and with ``--json`` as JSON with the sources."""
    from .responses import print_stats

    if args.verbose:
        print_stats(response)
    if args.json:
        others = ("text", "token", "logprobs", "from_draft", "lookup")
        stats = {k: v for k, v in vars(response).items() if k not in others}
        print(json.dumps(stats | sources_record(response.lookup, answer)))


class _Module(types.ModuleType):
    # `allmem_mlx.generate` is a function of the package, and a module for `python -m
    # allmem_mlx.generate`. Importing the module puts it in place of the function, so it
    # can be called like that.
    def __call__(self, *args: Any, **kwargs: Any) -> str:
        from .streaming import generate

        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Module


def main() -> None:
    run(setup_arg_parser(), generate)


if __name__ == "__main__":
    main()
