"""Flags that commands share, and what they ask for: model, sampler, sizes."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..config import AllMemConfig
from ..documents.encodings import decode
from ..errors import SettingError, warn


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
    add("--temp", type=float, help="Sampling temperature. Default: 0")
    add("--top-p", type=float, help="Sampling top-p. Default: 1")
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
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="End the response before this text; may be given several times",
    )


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
        help="Tokens evaluated at once while reading. Default: a block of about 512",
    )
    add(
        "--allow-special-tokens",
        action="store_true",
        help="Read the names of control tokens in documents and messages as control "
        "tokens, not as plain text; only for text that you trust",
    )
    add("--load-state", metavar="FILE", help="Start from what was read before")


def check_texts(args: argparse.Namespace, *names: str) -> None:
    """Decodes texts of the command line, in place, and says how.

    Raises:
        AllMemError: if the encoding of one cannot be told.
        SettingError: if one of ``--stop`` is empty.
    """
    for name in (*names, "stop"):
        flag, given = f"--{name.replace('_', '-')}", getattr(args, name)
        if isinstance(given, list):
            setattr(args, name, [incoming(text, flag) for text in given])
        elif given is not None:
            setattr(args, name, incoming(given, flag))
    if "" in args.stop:
        raise SettingError("--stop must not be empty")


def incoming(text: str | bytes, name: str) -> str:
    """Text from outside, decoded as documents are; what is to be said of it is said.

    Args:
        text (str or bytes): an argument of the command line, or what was read.
        name (str): what messages call it.

    Raises:
        AllMemError: if its encoding cannot be told.
    """
    data = text if isinstance(text, bytes) else os.fsencode(text)
    decoded, notes = decode(data, name)
    for note in notes:
        warn(note)
    return decoded


def check_state_files(args: argparse.Namespace) -> None:
    """Refuses a state that cannot be loaded or saved, before anything is read.

    Raises:
        AllMemError: if a file is no state, or cannot be written.
        SettingError: if a name is empty.
    """
    from .. import state as states

    save = getattr(args, "save_state", None)
    if "" in (args.load_state, save):
        raise SettingError("the name of a state's file must not be empty")
    if args.load_state is not None:
        states.check(args.load_state)
    if save is not None:
        states.check_place(save)


def check_sampling(args: argparse.Namespace) -> None:
    """Refuses what no sampler can obey."""
    for name, least, most in (
        ("temp", 0, 1e6),
        ("top_p", 0, 1),
        ("min_p", 0, 1),
        ("top_k", 0, 2**31),
        ("xtc_probability", 0, 1),
        ("xtc_threshold", 0, 0.5),
        ("min_tokens_to_keep", 1, 2**31),
        ("seed", 0, 2**64 - 1),
    ):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            flag = name.replace("_", "-")
            raise SettingError(f"--{flag} is {value}; it must be {least} to {most:g}")


def check_counts(args: argparse.Namespace) -> None:
    """Refuses impossible numbers of tokens, and of the sampler."""
    check_sampling(args)
    if args.max_tokens == 0 or args.max_tokens < -1:
        raise SettingError("--max-tokens must be above 0, or -1 for no limit")
    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        raise SettingError("--prefill-step-size must be at least 1")


def make_sampler(
    args: argparse.Namespace, tokenizer: Any, temp: float = 0.0, top_p: float = 1.0
) -> Callable[[Any], Any]:
    """mlx-lm's sampler, as the command line asks for it.

    Args:
        args: of :func:`add_sampling`.
        tokenizer: of the model.
        temp, top_p (float): if the command line gives no temperature.
    """
    from mlx_lm.sample_utils import make_sampler as mlx_lm_make_sampler

    if args.temp is not None:
        temp, top_p = args.temp, 1.0
    return mlx_lm_make_sampler(
        temp,
        top_p if args.top_p is None else args.top_p,
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


def add_eos_tokens(tokenizer: Any, names: Sequence[str]) -> None:
    """Tokens that end a response, beside the tokenizer's own.

    Args:
        tokenizer: mlx-lm's wrapper of one.
        names (list): their names, or their ids.

    Raises:
        SettingError: if one is not a single token.
    """
    vocabulary = tokenizer.get_vocab()
    for name in names:
        known = name.isdecimal() and int(name) in vocabulary.values()
        if name not in vocabulary and not known:
            raise SettingError(
                f"--extra-eos-token {name!r} is not one token of this model; use --stop"
            )
        tokenizer.add_eos_token(name)


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the tokenizer that the command line asks for."""
    from ..loading import load

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
