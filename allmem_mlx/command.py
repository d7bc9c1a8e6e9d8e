"""What every command shares: its parser, and how it ends."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .config import AllMemConfig
from .errors import AllMemError, SettingError


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with ``--debug`` for tracebacks."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(
            "--debug", action="store_true", help="Print a traceback with an error"
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a model."""
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_REPO",
        help="Model folder, or ORG/NAME of the Hugging Face hub. Default: the embedded "
        "SmolLM2-135M-Instruct",
    )
    add("--adapter-path", help="LoRA adapter weights and config")
    add("--trust-remote-code", action="store_true", help="Of the tokenizer")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for how a token is chosen."""
    add = parser.add_argument
    add("--temp", type=float, default=0.0, help="Sampling temperature")
    add("--top-p", type=float, default=1.0, help="Sampling top-p")
    add("--min-p", type=float, default=0.0, help="Sampling min-p")
    add("--top-k", type=int, default=0, help="Sampling top-k")
    add("--xtc-probability", type=float, default=0.0, help="Probability of XTC")
    add("--xtc-threshold", type=float, default=0.1, help="Threshold of XTC")
    add(
        "--min-tokens-to-keep",
        type=int,
        default=1,
        help="Minimum tokens to keep for min-p sampling",
    )
    add("--seed", type=int, help="PRNG seed")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for how documents and messages are read."""
    add = parser.add_argument
    add("--system-prompt", help="System prompt for the chat template")
    add(
        "--chat-template-config",
        metavar="JSON",
        help="Additional config for `apply_chat_template`",
    )
    add(
        "--prefill-step-size",
        type=int,
        metavar="N",
        help="Tokens evaluated at once while reading. Default: the chunk",
    )
    add("--load-state", metavar="FILE", help="Start from what was read before")


def check_counts(args: argparse.Namespace) -> None:
    """Refuses impossible numbers of tokens."""
    if args.max_tokens == 0 or args.max_tokens < -1:
        raise SettingError("--max-tokens must be above 0, or -1 for no limit")
    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        raise SettingError("--prefill-step-size must be at least 1")


def make_sampler(args: argparse.Namespace, tokenizer: Any) -> Callable[[Any], Any]:
    """mlx-lm's sampler, as the command line asks for it."""
    from mlx_lm.sample_utils import make_sampler as mlx_lm_make_sampler

    return mlx_lm_make_sampler(
        args.temp,
        args.top_p,
        args.min_p,
        args.min_tokens_to_keep,
        top_k=args.top_k,
        xtc_probability=args.xtc_probability,
        xtc_threshold=args.xtc_threshold,
        xtc_special_tokens=tokenizer.encode("\n") + list(tokenizer.eos_token_ids),
    )


def chat_template_config(text: str | None) -> dict[str, Any]:
    """What ``--chat-template-config`` says."""
    try:
        config = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise SettingError(f"--chat-template-config is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise SettingError("--chat-template-config must be a JSON object")
    return config


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for sizes of the hybrid layer."""
    add = parser.add_argument
    add("--window", type=int, help="Tokens that attention sees")
    add("--sinks", type=int, help="First tokens that attention sees always")
    add("--chunk", type=int, help="Tokens between two updates of the memory")


def sizes(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The sizes that the command line gives, by their name in ``AllMemConfig``, and
    ``more`` settings of it."""
    names = ("window", "sinks", "chunk", *more)
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def warn(text: str) -> None:
    print(f"[WARNING] {text}", file=sys.stderr)


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the tokenizer that the command line asks for."""
    from .loading import load

    model, tokenizer = load(
        args.model,
        tokenizer_config={"trust_remote_code": args.trust_remote_code},
        model_config=sizes(args),
        adapter_path=args.adapter_path,
    )
    _warn_of_chunk(model.allmem)
    return model, tokenizer


def _warn_of_chunk(config: AllMemConfig) -> None:
    """Says what a chunk larger than the window means."""
    if config.chunk > config.window:
        warn(
            f"chunk {config.chunk} is larger than window {config.window}: tokens that "
            "leave the window are forgotten until their chunk is complete"
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command that is told to end does so as after Ctrl-C."""


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


def run(parser: argparse.ArgumentParser, command: Callable[..., None]) -> NoReturn:
    """Parses the command line, runs ``command(args)`` and exits.

    The exit code is 0, 1 for a failure, 2 for a wrong use, 130 after Ctrl-C, 143 after
    SIGTERM. An error is one line on stderr.
    """
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command(args)
        sys.stdout.flush()
        code = 0
    except BrokenPipeError:
        # The reader of our output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt as error:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        code = 143 if isinstance(error, Terminated) else 130
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, AllMemError):
            message, code = str(error), error.exit_code
        else:
            lines = str(error).splitlines() or [""]
            message, code = f"{type(error).__name__}: {lines[0]}", 1
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
    sys.exit(code)
