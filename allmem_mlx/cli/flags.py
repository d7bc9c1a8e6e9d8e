"""Flags that several commands share, and the model, sampler and template they name."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

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
    add("--trust-remote-code", action="store_true", help="Trust a tokenizer's code")


def add_generation(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Adds the flags for reading and generating, and those of :func:`add_sizes`."""
    add_sizes(parser)
    add = parser.add_argument
    add("--max-tokens", "-m", type=int, default=max_tokens, help="Tokens to generate")
    add("--temp", type=float, help="Sampling temperature. Default: 0")
    add("--top-p", type=float, help="Sampling top-p. Default: 1")
    add("--min-p", type=float, default=0.0, help="Sampling min-p")
    add("--top-k", type=int, default=0, help="Sampling top-k")
    add("--xtc-probability", type=float, default=0.0, help="Probability of XTC")
    add("--xtc-threshold", type=float, default=0.1, help="Threshold of XTC")
    add("--min-tokens-to-keep", type=int, default=1, help="Minimum tokens for min-p")
    add("--seed", type=int, help="PRNG seed")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="End the response before this text; may be given several times",
    )
    add("--system-prompt", help="System prompt for the chat template")
    add(
        "--chat-template-config",
        type=json_object,
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


def flag(name: str) -> str:
    """The flag of an argument: ``--max-tokens`` of ``max_tokens``."""
    return f"--{name.replace('_', '-')}"


def json_object(text: str) -> dict[str, Any]:
    """The type of a flag that takes a JSON object."""
    try:
        config = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(config, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return config


def decode_texts(args: argparse.Namespace, *names: str) -> None:
    """Decodes ``--stop`` and other texts of the command line, in place."""
    for name in names:
        if (text := getattr(args, name)) is not None:
            setattr(args, name, decode_text(text, flag(name)))
    args.stop = [decode_text(text, "--stop") for text in args.stop]
    if "" in args.stop:
        raise SettingError("--stop must not be empty")


def decode_text(text: str | bytes, name: str) -> str:
    """A text from outside, decoded as documents are, with the same warnings and errors,
    in which it is called by a name."""
    data = text if isinstance(text, bytes) else os.fsencode(text)
    decoded, notes = decode(data, name)
    for note in notes:
        warn(note)
    return decoded


def check_state_files(args: argparse.Namespace) -> None:
    """Refuses a state that cannot be loaded or saved, before anything is read."""
    from .. import state_file

    save = getattr(args, "save_state", None)
    if "" in (args.load_state, save):
        raise SettingError("the name of a state file must not be empty")
    if args.load_state is not None:
        state_file.check(args.load_state)
    if save is not None:
        state_file.check_place(save)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers of the sampler, and of tokens, that are out of range."""
    for name, low, high in (
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
        if value is not None and not low <= value <= high:
            raise SettingError(f"{flag(name)} is {value}; it must be {low} to {high:g}")
    if args.max_tokens == 0 or args.max_tokens < -1:
        raise SettingError("--max-tokens must be above 0, or -1 for no limit")
    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        raise SettingError("--prefill-step-size must be at least 1")


def refuse_template_flags(args: argparse.Namespace, why: str) -> None:
    """Raises :class:`SettingError` if a flag needs a chat template."""
    for name in ("system_prompt", "prefill_response", "chat_template_config"):
        if getattr(args, name, None) is not None:
            raise SettingError(f"{flag(name)} needs a chat template; {why}")


def make_template(args: argparse.Namespace, tokenizer: Any) -> Any:
    """The text around turns: the tokenizer's chat template, if it has one."""
    from ..chat_template import Template

    if not tokenizer.has_chat_template:
        refuse_template_flags(args, "the model's tokenizer has none")
        return Template.plain(tokenizer)
    template = Template.of_chat(
        tokenizer,
        args.system_prompt,
        getattr(args, "prefill_response", None),
        args.chat_template_config,
    )
    for note in template.notes:
        warn(note)
    return template


def make_sampler(
    args: argparse.Namespace, tokenizer: Any, temp: float = 0.0, top_p: float = 1.0
) -> Callable[[Any], Any]:
    """mlx-lm's sampler; the defaults hold if the command line gives no temperature."""
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


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for sizes of the hybrid layer."""
    add = parser.add_argument
    add("--window", type=int, help="Tokens that attention sees")
    add("--sinks", type=int, help="First tokens, which attention always sees")
    add("--chunk", type=int, help="Tokens between two updates of the memory")


def sizes(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The sizes on the command line, and ``more`` settings, by their names in
    ``AllMemConfig``."""
    names = ("window", "sinks", "chunk", *more)
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def add_eos_tokens(tokenizer: Any, names: Sequence[str]) -> None:
    """Adds tokens that end a response, by name or id, to those of the tokenizer."""
    vocabulary = tokenizer.get_vocab()
    for name in names:
        known = name.isdecimal() and int(name) in vocabulary.values()
        if name not in vocabulary and not known:
            raise SettingError(
                f"--extra-eos-token {name!r} is not a token of this model; use --stop"
            )
        tokenizer.add_eos_token(name)


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the tokenizer that the command line names."""
    from ..loading import load

    model, tokenizer = load(
        args.model,
        tokenizer_config={"trust_remote_code": args.trust_remote_code},
        model_config=sizes(args),
        adapter_path=args.adapter_path,
    )
    config = model.allmem
    if config.chunk > config.window:
        warn(
            f"chunk {config.chunk} is larger than window {config.window}: tokens that "
            "leave the window are forgotten until their chunk is complete"
        )
    return model, tokenizer
