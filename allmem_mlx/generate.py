"""Read a document of any length and go on from it, or answer a question about it."""

import argparse
import itertools
import json
import sys
import time
import types
from typing import Any

from .command import ArgumentParser, add_sizes, run, sizes
from .document import Document
from .errors import AllMemError, SettingError

# Bytes tokenised at a time: small enough for the progress bar to move steadily.
PIECE = 8192
# Stands for the document while the chat template is rendered.
DOCUMENT_MARK = "<<7f4e0c1a document 9b2d>>"


def str2bool(string: str) -> bool:
    return string.lower() not in ["false", "f"]


def setup_arg_parser() -> argparse.ArgumentParser:
    """The flags are mlx-lm's, where it has them."""
    parser = ArgumentParser(prog="allmem_mlx.generate", description=__doc__)
    add = parser.add_argument
    add("--model", help="Model folder. Default: the embedded SmolLM2-135M-Instruct")
    add("--adapter-path", help="LoRA adapter weights and config")
    add(
        "--prompt-file",
        metavar="FILE",
        help="Document to read, UTF-8 ('-' reads stdin). Without --prompt the model "
        "writes on from where it ends",
    )
    add(
        "--prompt",
        "-p",
        help="Message to the model, after the document if there is one ('-' reads "
        "stdin)",
    )
    add_sizes(parser)
    add("--max-tokens", "-m", type=int, default=100, help="Tokens to generate")
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
    add("--system-prompt", help="System prompt for the chat template")
    add("--prefill-response", help="First words of the response")
    add("--extra-eos-token", nargs="+", default=(), help="More tokens that end it")
    add(
        "--ignore-chat-template",
        action="store_true",
        help="Use the raw prompt without the tokenizer's chat template",
    )
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
    add("--trust-remote-code", action="store_true", help="Of the tokenizer")
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
    if args.prompt is None and args.prompt_file is None:
        raise SettingError("nothing to read: give --prompt-file, --prompt or both")
    if args.prompt == "-" and args.prompt_file == "-":
        raise SettingError("--prompt and --prompt-file cannot both read stdin")
    if args.max_tokens == 0 or args.max_tokens < -1:
        raise SettingError("--max-tokens must be above 0, or -1 for no limit")
    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        raise SettingError("--prefill-step-size must be at least 1")
    if args.prompt is None or args.ignore_chat_template:
        for flag in ("system_prompt", "prefill_response", "chat_template_config"):
            if getattr(args, flag) is not None:
                raise SettingError(
                    f"--{flag.replace('_', '-')} needs a chat template, which is used "
                    "with --prompt and without --ignore-chat-template"
                )


def chat_template_config(text: str | None) -> dict[str, Any]:
    try:
        config = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise SettingError(f"--chat-template-config is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise SettingError("--chat-template-config must be a JSON object")
    return config


def around_document(
    tokenizer: Any, args: argparse.Namespace, template_config: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Token ids before and after the document; without one, their sum is the prompt.

    The document and ``--prompt`` are one user message, a blank line between them. With
    no chat template, or nothing asked, the document is read as it stands.
    """
    question = args.prompt
    if question == "-":
        question = sys.stdin.read()
    elif question is not None:
        question = question.replace("\\n", "\n").replace("\\t", "\t")
    parts = [DOCUMENT_MARK] if args.prompt_file else []
    text = "\n\n".join(parts + ([] if question is None else [question]))

    if question is None or args.ignore_chat_template or not tokenizer.has_chat_template:
        before, _, after = text.rpartition(DOCUMENT_MARK)
        # What the tokenizer puts before every text, a BOS for one.
        start = tokenizer.encode("")
    else:
        messages = [{"role": "user", "content": text}]
        if args.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": args.system_prompt})
        prefill = args.prefill_response is not None
        if prefill:
            messages.append({"role": "assistant", "content": args.prefill_response})
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not prefill,
            continue_final_message=prefill,
            **template_config,
        )
        if rendered.count(DOCUMENT_MARK) != len(parts):
            raise AllMemError(
                "the chat template does not repeat the message as it is; use "
                "--ignore-chat-template"
            )
        before, _, after = rendered.rpartition(DOCUMENT_MARK)
        start = []
    return (
        start + tokenizer.encode(before, add_special_tokens=False),
        tokenizer.encode(after, add_special_tokens=False),
    )


class Progress:
    """A bar on stderr, on a terminal only: tokens, tokens per second and time left.

    It follows the bytes of the file that were tokenised, a known part of the whole.
    """

    def __init__(self, document: Any):
        from tqdm import tqdm

        self.document = document
        known = document is not None and document.size is not None
        self.bar = tqdm(
            total=document.size if known else None,
            bar_format="{desc}|{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
            if known
            else "{desc} [{elapsed}]",
            leave=False,
            disable=None,  # where stderr is not a terminal
        )
        self.start = time.perf_counter()

    def __call__(self, tokens: int) -> None:
        speed = tokens / (time.perf_counter() - self.start)
        self.bar.set_description_str(
            f"{tokens} tokens, {speed:.0f} tokens-per-sec ", refresh=False
        )
        if self.document is not None:
            self.bar.n = self.document.bytes_read
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def generate(args: argparse.Namespace) -> None:
    check_args(args)
    template_config = chat_template_config(args.chat_template_config)
    document = None
    if args.prompt_file is not None:
        document = Document(args.prompt_file, piece=PIECE)

    import mlx.core as mx
    from mlx_lm.sample_utils import make_sampler

    from .loading import load
    from .streaming import print_statistics, stream_generate

    model, tokenizer = load(
        args.model,
        tokenizer_config={"trust_remote_code": args.trust_remote_code},
        model_config=sizes(args),
        adapter_path=args.adapter_path,
    )
    for token in args.extra_eos_token:
        tokenizer.add_eos_token(token)
    config = model.args.allmem
    if config.chunk > config.window:
        warn(
            f"chunk {config.chunk} is larger than window {config.window}: tokens that "
            "leave the window are forgotten until their chunk is complete"
        )
    if args.seed is not None:
        mx.random.seed(args.seed)
    sampler = make_sampler(
        args.temp,
        args.top_p,
        args.min_p,
        args.min_tokens_to_keep,
        top_k=args.top_k,
        xtc_probability=args.xtc_probability,
        xtc_threshold=args.xtc_threshold,
        xtc_special_tokens=tokenizer.encode("\n") + list(tokenizer.eos_token_ids),
    )

    before, after = around_document(tokenizer, args, template_config)
    pieces = [before], [] if document is None else document.pieces(tokenizer), [after]
    progress = Progress(document)
    for response in stream_generate(
        model,
        tokenizer,
        itertools.chain(*pieces),
        args.max_tokens,
        sampler=sampler,
        prefill_step_size=args.prefill_step_size,
        prompt_progress_callback=progress,
    ):
        if response.generation_tokens == 1:
            progress.close()
            if args.verbose:
                print("=" * 10)
        print(response.text, end="", flush=True)
    print()
    if document is not None and document.replaced:
        warn(f"{document.name}: {document.replaced} characters were not UTF-8")
    if args.verbose:
        print("=" * 10)
        print_statistics(response)
    if args.json:
        print(json.dumps(statistics(response)))


def statistics(response: Any) -> dict[str, Any]:
    """The numbers of a :class:`GenerationResponse`, without its text and arrays."""
    left_out = ("text", "token", "logprobs", "from_draft")
    return {k: v for k, v in vars(response).items() if k not in left_out}


def warn(text: str) -> None:
    print(f"[WARNING] {text}", file=sys.stderr)


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
