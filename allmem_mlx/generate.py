"""Read a document of any length and go on from it, or answer a question about it."""

import argparse
import itertools
import json
import os
import sys
import types
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from .cli.archive_flags import (
    add_archive,
    archive_beside,
    check_archive,
    looking_up,
    open_archive,
    print_sources,
    record,
    wants_archive,
    warn_of_lost,
)
from .cli.flags import (
    add_eos_tokens,
    add_model,
    add_reading,
    add_sampling,
    add_sizes,
    chat_template_config,
    check_counts,
    check_state_files,
    check_texts,
    incoming,
    load_model,
    make_sampler,
    warn,
)
from .cli.progress import PIECE, Progress
from .cli.run import ENDS, ArgumentParser, deaf, hear_signals, run
from .documents import Document
from .errors import AllMemError, SettingError

# Sampling where a text is written on: its most likely continuation repeats itself.
WRITING_ON = {"temp": 0.8, "top_p": 0.95}


def str2bool(string: str) -> bool:
    return string.lower() not in ["false", "f"]


def setup_arg_parser() -> argparse.ArgumentParser:
    """The flags are mlx-lm's, where it has them."""
    parser = ArgumentParser(prog="allmem_mlx.generate", description=__doc__)
    add = parser.add_argument
    add_model(parser)
    add(
        "--prompt-file",
        action="append",
        metavar="FILE",
        help="Document to read: PDF, EPUB, Word, HTML, RTF, Markdown or text, or a "
        "folder of them ('-' reads stdin). Several are read in order. Without --prompt "
        "and --save-state the model writes on from where it ends, by default with "
        "--temp 0.8 --top-p 0.95",
    )
    add(
        "--prompt",
        "-p",
        action="append",
        help="Message to the model, after the document if there is one ('-' reads "
        "stdin). Each of several starts from the same state",
    )
    add(
        "--escape",
        "-e",
        action="store_true",
        help="Read \\n and \\t in --prompt as a line break and a tab",
    )
    add(
        "--questions",
        metavar="FILE",
        help="File with a message in each line, as if given by --prompt",
    )
    add(
        "--save-state",
        metavar="FILE",
        help="Save what was read, before any message. If FILE has a part of the "
        "document already, reading goes on from there",
    )
    add(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="Also save after each N tokens read",
    )
    add(
        "--half-window",
        action="store_true",
        help="Save keys and values of the window in half precision",
    )
    add_archive(parser)
    add(
        "--index-only",
        action="store_true",
        help="Answer from the passages alone, at once: the document is indexed and not "
        "read",
    )
    add_sizes(parser)
    add("--max-tokens", "-m", type=int, default=100, help="Tokens to generate")
    add_sampling(parser)
    add_reading(parser)
    add("--prefill-response", help="First words of the response")
    add(
        "--extra-eos-token",
        nargs="+",
        default=(),
        help="More tokens that end it; see --stop for text",
    )
    add(
        "--ignore-chat-template",
        action="store_true",
        help="Use the raw prompt without the tokenizer's chat template",
    )
    add(
        "--verbose",
        type=str2bool,
        default=True,
        help="'False' or 'F' prints only the response",
    )
    add(
        "--json",
        action="store_true",
        help="Print the statistics as one JSON object on the last line",
    )
    # Known to users of mlx-lm, refused below.
    add("--max-kv-size", help=argparse.SUPPRESS)
    add("--kv-bits", help=argparse.SUPPRESS)
    add("--draft-model", help=argparse.SUPPRESS)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot be obeyed, before the model is loaded."""
    for flag, reason in {
        "--max-kv-size": "the state has a fixed size; use --window",
        "--kv-bits": "keys and values of the window are not quantised",
        "--draft-model": "a memory that learned a token cannot unlearn it",
    }.items():
        if getattr(args, flag[2:].replace("-", "_")) is not None:
            raise SettingError(f"{flag} is not supported: {reason}")
    asked = args.prompt is not None or args.questions is not None
    if args.index_only:
        check_index_only(args, asked)
    sources = (args.prompt, args.questions, args.prompt_file, args.load_state)
    if all(source is None for source in sources):
        raise SettingError(
            "nothing to read: give --prompt-file, --prompt or both, or --load-state"
        )
    stdin = [*(args.prompt or []), *(args.prompt_file or []), args.questions]
    if stdin.count("-") > 1:
        raise SettingError(
            "only one of --prompt, --prompt-file and --questions can read stdin"
        )
    if not args.save_state:
        for flag in ("checkpoint_every", "half_window"):
            if getattr(args, flag):
                raise SettingError(f"--{flag.replace('_', '-')} needs --save-state")
    elif not os.path.isdir(os.path.dirname(args.save_state) or "."):
        raise SettingError(f"the folder of {args.save_state!r} does not exist")
    elif os.path.exists(args.save_state):
        goes_on = args.load_state is None and args.prompt_file is not None
        same = args.load_state and os.path.exists(args.load_state)
        if not goes_on and not (
            same and os.path.samefile(args.save_state, args.load_state)
        ):
            raise SettingError(f"{args.save_state!r} exists already; name another file")
    check_state_files(args)
    check_archive(args)
    if args.checkpoint_every is not None and args.checkpoint_every < 1:
        raise SettingError("--checkpoint-every must be at least 1")
    check_counts(args)
    if not (asked or args.save_state) or args.ignore_chat_template:
        why = "which is used with --prompt and without --ignore-chat-template"
        refuse_template_flags(args, why)


def check_index_only(args: argparse.Namespace, asked: bool) -> None:
    """Refuses ``--index-only`` where something must be read."""
    for flag in ("save_state", "load_state"):
        if getattr(args, flag) is not None:
            name = flag.replace("_", "-")
            raise SettingError(
                f"--index-only reads nothing; --{name} does not go with it"
            )
    if args.no_archive:
        raise SettingError("--index-only cannot be used with --no-archive")
    if args.prompt_file is None:
        raise SettingError("--index-only needs a document: --prompt-file")
    if not asked and args.archive is None:
        raise SettingError(
            "--index-only needs --prompt, or --archive to keep the index"
        )


def refuse_template_flags(args: argparse.Namespace, why: str) -> None:
    """Refuses what needs a chat template where none is used.

    Raises:
        SettingError: if there is such a flag.
    """
    for flag in ("system_prompt", "prefill_response", "chat_template_config"):
        if getattr(args, flag) is not None:
            name = flag.replace("_", "-")
            raise SettingError(f"--{name} needs a chat template, {why}")


def questions(args: argparse.Namespace) -> list[str]:
    """What is to be asked, in order."""
    asked = []
    for prompt in args.prompt or []:
        if prompt == "-":
            if sys.stdin is None:
                raise AllMemError("standard input is closed; pipe a question into it")
            asked.append(incoming(sys.stdin.buffer.read(), "the question on stdin"))
            continue
        text = incoming(prompt, "--prompt")
        if args.escape:
            text = text.replace("\\n", "\n").replace("\\t", "\t")
        asked.append(text)
    if args.questions is not None:
        document = Document(args.questions)
        lines = "".join(document.text()).split("\n")
        for note in document.notes + document.warnings:
            warn(note)
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise AllMemError(f"{args.questions!r} has only empty lines")
        asked += lines
    return asked


def generate(args: argparse.Namespace) -> None:
    check_args(args)
    check_texts(args, "system_prompt", "prefill_response")
    template_config = chat_template_config(args.chat_template_config)
    asked = questions(args)
    document = None
    if args.prompt_file is not None:
        document = Document(args.prompt_file, piece=PIECE)
        for note in document.notes:
            warn(note)

    import mlx.core as mx

    from . import state as states
    from .archive.reading import Reading
    from .chat_template import Template
    from .documents.plain_text import encode
    from .session import Session

    model, tokenizer = load_model(args)
    add_eos_tokens(tokenizer, args.extra_eos_token)
    sampler = make_sampler(args, tokenizer, **({} if asked else WRITING_ON))
    state = starting_state(args, model)
    chat = (
        tokenizer.has_chat_template
        and not args.ignore_chat_template
        and bool(asked or args.save_state)
    )
    if chat:
        template = Template.of_chat(
            tokenizer, args.system_prompt, args.prefill_response, template_config
        )
        for note in template.notes:
            warn(note)
    else:
        refuse_template_flags(args, "the model's tokenizer has none")
        template = Template.plain(tokenizer)
    window = model.allmem.window
    if (args.passage_tokens or 0) > window:
        raise SettingError(f"--passage-tokens must be below the window, {window}")
    archive = open_archive(args, tokenizer, state) if wants_archive(args) else None
    if archive is None and args.load_state is not None and not args.no_archive:
        warn_of_lost(archive_beside(args.load_state), state)
    session = Session(model, tokenizer, state, archive=archive)
    if document is not None:
        trusted = args.allow_special_tokens
        opening = template.start + encode(tokenizer, template.parts, trusted)
        pieces: Iterable[list[int]] = document.pieces(tokenizer, trusted)
        if archive is not None:
            begun = next(iter(state.documents), None)
            reading = Reading(archive, document, begun, trusted)
            if state.tokens and reading.ahead and archive.entry(reading.key) is None:
                # Refused before it is added, if the state has read something else.
                again = Document(args.prompt_file).pieces(tokenizer, trusted)
                next(states.unread(itertools.chain([opening], again), state), None)
            index(reading)
            pieces = reading.pieces()
            if args.index_only:
                if not reading.ahead:  # a pipe is added as it comes
                    for _ in pieces:
                        pass
                state.add_document(reading.key)
            else:
                state.open_document(reading.key, len(opening))
        if args.index_only:
            for warning in document.warnings:
                warn(warning)
        else:
            state.notes["turn"] = "user" if chat else "text"
            whole = itertools.chain([opening], pieces)
            read(args, session, states.unread(whole, state), document)
    elif state.tokens and args.system_prompt is not None:
        raise SettingError("--system-prompt comes before everything that was read")
    elif args.save_state is not None:
        states.save(session.state, args.save_state, model, args.half_window)
    if args.index_only and not asked:
        return
    if args.save_state is not None and not asked:
        tell(session.reading(), args)
        return

    options = {
        "max_tokens": args.max_tokens,
        "sampler": sampler,
        "stop": args.stop,
    }
    turns: list[str | None] = [*asked] or [None]
    for question in turns:
        if args.seed is not None:  # for each, so that it is answered as if alone
            mx.random.seed(args.seed)
        if question is None:
            responses = session.fork().generate(**options)
        else:
            responses = session.ask(
                question,
                template=template,
                allow_special_tokens=args.allow_special_tokens,
                **options,
                **looking_up(args),
            )
        first, answer = next(responses), ""
        if args.verbose:
            print("=" * 10)
            if len(asked) > 1:
                print(f"{question}\n")
        for response in itertools.chain([first], responses):
            answer += response.text
            print(response.text, end="", flush=True)
        print()
        if args.verbose:
            print_sources(response.lookup, question, answer, archive)
            print("=" * 10)
        tell(response, args, answer)


def starting_state(args: argparse.Namespace, model: Any) -> Any:
    """What was read before this command, or a new state."""
    from . import state as states

    if args.load_state is not None:
        return states.load(args.load_state, model)
    if args.save_state is not None and os.path.exists(args.save_state):
        return states.load(args.save_state, model)
    return states.new(model)


def index(reading: Any) -> None:
    """Adds a document to its archive."""
    progress = Progress(reading.document)
    try:
        reading.index(progress.indexed)
    finally:
        with suppress(OSError):  # the terminal is closed
            progress.close()


def read(
    args: argparse.Namespace,
    session: Any,
    pieces: Iterable[list[int]],
    document: Document,
) -> None:
    """Reads a document and saves the state at its end, and as often as was asked for.

    Whatever ends this early, Ctrl-C, a signal or an error, what was read until then is
    saved.
    """
    from . import state as states

    def save() -> None:
        if session.archive is not None:
            session.archive.commit()  # first, so that it has all that the state has
        states.save(session.state, args.save_state, session.model, args.half_window)

    hear_signals(*ENDS)
    progress = Progress(document)
    before, saved = session.state.read, 0
    try:
        for done in session.read(pieces, args.prefill_step_size):
            progress(done)
            if args.checkpoint_every and done - saved >= args.checkpoint_every:
                save()
                saved = done
        if args.save_state is not None:
            save()
    except BaseException:
        with suppress(OSError):  # the terminal is closed
            progress.close()
        if args.save_state is not None and session.state.read > before:
            with deaf():
                save()
            with suppress(OSError):
                print(
                    f"\n{session.state.read} tokens are in {args.save_state!r}; the "
                    "same command goes on from there",
                    file=sys.stderr,
                )
        raise
    progress.close()
    for warning in document.warnings:
        warn(warning)


def tell(response: Any, args: argparse.Namespace, answer: str = "") -> None:
    """The statistics, as they were asked for, and sources in JSON."""
    from .streaming import print_statistics

    if args.verbose:
        print_statistics(response)
    if args.json:
        print(json.dumps(statistics(response) | record(response.lookup, answer)))


def statistics(response: Any) -> dict[str, Any]:
    """The numbers of a :class:`GenerationResponse`, without its text and arrays."""
    left_out = ("text", "token", "logprobs", "from_draft", "lookup")
    return {k: v for k, v in vars(response).items() if k not in left_out}


class _Module(types.ModuleType):
    """Where this module was imported it stands in front of the function of its name,
    ``allmem_mlx.generate``, so it can be called like that."""

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        from .streaming import generate

        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Module


def main() -> None:
    run(setup_arg_parser(), generate)


if __name__ == "__main__":
    main()
