"""Talk with a model that remembers: read documents, save, undo, and branch off."""

import argparse
import sys
from typing import Any

from .cli.archive_flags import (
    add_archive,
    check_archive,
    lookup_options,
    open_archive,
    working_archive,
)
from .cli.flags import (
    add_generation,
    add_model,
    check_numbers,
    check_state_files,
    decode_texts,
    load_model,
    make_sampler,
    make_template,
)
from .cli.line_input import messages, note
from .cli.run import ArgumentParser, Terminated, one_line, run
from .errors import AllMemError, SettingError


def setup_arg_parser() -> argparse.ArgumentParser:
    """The parser, with mlx-lm's flags where it has them."""
    parser = ArgumentParser(prog="allmem_mlx chat", description=__doc__)
    add_model(parser)
    add_generation(parser, max_tokens=256)
    add_archive(parser)
    parser.add_argument("--max-kv-size", help=argparse.SUPPRESS)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses impossible settings, before the model is loaded."""
    if args.max_kv_size is not None:
        raise SettingError(
            "--max-kv-size is not supported: the state has a fixed size; use --window"
        )
    check_numbers(args)
    if args.load_state is not None and args.system_prompt is not None:
        raise SettingError("--system-prompt comes before everything that was read")
    check_state_files(args)
    check_archive(args)
    decode_texts(args, "system_prompt")


def start(args: argparse.Namespace) -> Any:
    """The chat, with its model loaded, in the state to start from."""
    import mlx.core as mx

    from . import state as states
    from .cli.chat_commands import Chat
    from .session import Session

    model, tokenizer = load_model(args)
    if not tokenizer.has_chat_template:
        raise AllMemError("the tokenizer has no chat template; use allmem_mlx generate")
    template = make_template(args, tokenizer)
    file = args.load_state
    state = states.new(model) if file is None else states.load(file, model)
    archive = None
    if args.archive is not None:
        archive = open_archive(args, tokenizer, state)
    elif not args.no_archive:
        archive = working_archive(file, tokenizer, state, verify=False)
    if args.seed is not None:
        mx.random.seed(args.seed)
    return Chat(
        Session(model, tokenizer, state, snapshots=True, archive=archive),
        template,
        {
            "max_tokens": args.max_tokens,
            "sampler": make_sampler(args, tokenizer),
            "stop": args.stop,
        },
        args.prefill_step_size,
        args.allow_special_tokens,
        lookup_options(args),
    )


def chat(args: argparse.Namespace) -> None:
    check_args(args)
    talk = start(args)
    from .cli.chat_commands import COMMANDS, Quit, describe

    stdin: Any = sys.stdin
    stdin.reconfigure(errors="surrogateescape")  # a message is decoded as documents are
    if stdin.isatty():
        note("/help lists the commands")
    usages = {name: describe(command)[0] for name, command in COMMANDS.items()}
    for message, quoted in messages(talk, usages):
        try:
            talk.take(message, quoted)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not stdin.isatty():
                raise
            note("interrupted")
        except Quit:
            break
        except Exception as error:  # whatever fails, the conversation goes on
            if args.debug and not isinstance(error, AllMemError):
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)


def main() -> None:
    run(setup_arg_parser(), chat)


if __name__ == "__main__":
    main()
