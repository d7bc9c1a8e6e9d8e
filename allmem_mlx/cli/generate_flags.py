"""The command line of ``allmem_mlx generate``: flags, checks, and the questions."""

import argparse
import os
import sys

from ..documents import Document
from ..errors import AllMemError, SettingError, warn
from .archive_flags import add_archive, check_archive
from .flags import (
    add_generation,
    add_model,
    check_numbers,
    check_state_files,
    decode_text,
    decode_texts,
    flag,
    refuse_template_flags,
)
from .run import ArgumentParser

UNSUPPORTED = {
    "max_kv_size": "the state has a fixed size; use --window",
    "kv_bits": "keys and values of the window are not quantised",
    "draft_model": "a memory that learned a token cannot unlearn it",
}


def str2bool(string: str) -> bool:
    return string.lower() not in ["false", "f"]


def setup_arg_parser() -> argparse.ArgumentParser:
    """The parser, with mlx-lm's flags where it has them."""
    parser = ArgumentParser(
        prog="allmem_mlx generate",
        description="Read a document of any length and go on from it, or answer a "
        "question about it.",
    )
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
    add("--questions", metavar="FILE", help="File with a message in each line")
    add(
        "--save-state",
        metavar="FILE",
        help="Save what was read, before any message. If FILE holds a part of the "
        "document, reading continues from there",
    )
    add("--checkpoint-every", type=int, metavar="N", help="Also save every N tokens")
    add("--half-window", action="store_true", help="Save the window in half precision")
    add_archive(parser)
    add(
        "--index-only",
        action="store_true",
        help="Answer from the passages alone, at once: the document is indexed and not "
        "read",
    )
    add_generation(parser, max_tokens=100)
    add("--prefill-response", help="First words of the response")
    add(
        "--extra-eos-token",
        nargs="+",
        default=(),
        help="More tokens that end the response; see --stop for text",
    )
    add("--ignore-chat-template", action="store_true", help="Use the raw prompt")
    add("--verbose", type=str2bool, default=True, help="'F' prints only the response")
    add("--json", action="store_true", help="Print statistics as JSON on the last line")
    for name in UNSUPPORTED:  # flags of mlx-lm, refused below
        add(flag(name), help=argparse.SUPPRESS)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses impossible settings, before the model is loaded."""
    for name, reason in UNSUPPORTED.items():
        if getattr(args, name) is not None:
            raise SettingError(f"{flag(name)} is not supported: {reason}")
    has_questions = args.prompt is not None or args.questions is not None
    if args.index_only:
        _check_index_only(args, has_questions)
    if not has_questions and args.prompt_file is None and args.load_state is None:
        raise SettingError(
            "nothing to read: give --prompt-file, --prompt or both, or --load-state"
        )
    stdin = [*(args.prompt or []), *(args.prompt_file or []), args.questions]
    if stdin.count("-") > 1:
        raise SettingError(
            "only one of --prompt, --prompt-file and --questions can read stdin"
        )
    _check_saving(args)
    check_state_files(args)
    check_archive(args)
    check_numbers(args)
    if not (has_questions or args.save_state) or args.ignore_chat_template:
        why = "it is used with --prompt and without --ignore-chat-template"
        refuse_template_flags(args, why)
    decode_texts(args, "system_prompt", "prefill_response")


def _check_index_only(args: argparse.Namespace, has_questions: bool) -> None:
    """Refuses ``--index-only`` where something must be read."""
    for name in ("save_state", "load_state"):
        if getattr(args, name) is not None:
            raise SettingError(
                f"--index-only reads nothing; it cannot be used with {flag(name)}"
            )
    if args.no_archive:
        raise SettingError("--index-only cannot be used with --no-archive")
    if args.prompt_file is None:
        raise SettingError("--index-only needs a document: --prompt-file")
    if not has_questions and args.archive is None:
        raise SettingError(
            "--index-only needs --prompt, or --archive to keep the index"
        )


def _check_saving(args: argparse.Namespace) -> None:
    """Refuses to save where another file would be lost."""
    save, load = args.save_state, args.load_state
    if not save:
        for name in ("checkpoint_every", "half_window"):
            if getattr(args, name):
                raise SettingError(f"{flag(name)} needs --save-state")
    elif not os.path.isdir(os.path.dirname(save) or "."):
        raise SettingError(f"the folder of {save!r} does not exist")
    elif os.path.exists(save):
        resumes = load is None and args.prompt_file is not None
        same = load and os.path.exists(load) and os.path.samefile(save, load)
        if not resumes and not same:
            raise SettingError(f"{save!r} already exists; name another file")
    if args.checkpoint_every is not None and args.checkpoint_every < 1:
        raise SettingError("--checkpoint-every must be at least 1")


def questions(args: argparse.Namespace) -> list[str]:
    """The messages to the model, in order."""
    found = [_question(args, prompt) for prompt in args.prompt or []]
    if args.questions is None:
        return found
    document = Document(args.questions)
    lines = "".join(document.text()).split("\n")
    for note in document.notes + document.warnings:
        warn(note)
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise AllMemError(f"{args.questions!r} has only empty lines")
    return found + lines


def _question(args: argparse.Namespace, prompt: str) -> str:
    if prompt == "-":
        if sys.stdin is None:
            raise AllMemError("standard input is closed; pipe a question into it")
        return decode_text(sys.stdin.buffer.read(), "the question on stdin")
    text = decode_text(prompt, "--prompt")
    if args.escape:
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    return text
