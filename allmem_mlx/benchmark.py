"""Reading and decoding speed and memory, beside the same model with full attention.

Both models have the same weights and run in one process, one after the other for each
length. Time per token is also given as a ratio to that of the shortest length: for
AllMem it should stay 1.
"""

import argparse
import os
import tempfile
import time
from typing import Any

from .command import ArgumentParser, add_sizes, run, sizes
from .errors import SettingError


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.benchmark", description=__doc__)
    add = parser.add_argument
    add("--model", help="Model folder. Default: the embedded SmolLM2-135M-Instruct")
    add(
        "--prompt-tokens",
        "-p",
        type=int,
        nargs="+",
        default=[1024, 2048, 4096, 8192],
        help="Lengths to read",
    )
    add("--generation-tokens", "-g", type=int, default=32, help="Tokens to decode")
    add_sizes(parser)
    add(
        "--no-full-attention",
        dest="full_attention",
        action="store_false",
        help="Leave out the model with full attention",
    )
    return parser


def measure(model: Any, tokens: list[int], generated: int, step: int) -> dict[str, Any]:
    """Reads tokens and decodes more, with the cache the model makes.

    Args:
        model: any mlx-lm model.
        tokens (list): ids to read.
        generated (int): number of tokens to decode, greedily.
        step (int): tokens evaluated at once while reading.

    Returns:
        dict: ``prefill`` and ``decode`` in seconds, ``peak`` memory and the cache's
        size in ``bytes``, and the ``cache``.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    for i in range(0, len(tokens), step):
        logits = model(mx.array(tokens[i : i + step])[None], cache=cache)
        mx.eval([c.state for c in cache])
        mx.clear_cache()
    token = logits[:, -1:].argmax(-1)
    mx.eval(token)
    read = time.perf_counter()
    for _ in range(generated):
        token = model(token, cache=cache)[:, -1:].argmax(-1)
        mx.eval(token)
    return {
        "prefill": read - start,
        "decode": time.perf_counter() - read,
        "peak": mx.get_peak_memory(),
        "bytes": sum(c.nbytes for c in cache),
        "cache": cache,
    }


def measure_file(model: Any, cache: list[Any]) -> dict[str, float]:
    """Saves what was read to a file and opens it, as another process would.

    Args:
        model: an AllMem model.
        cache (list): what it has read.

    Returns:
        dict: size of the ``file`` in bytes, ``save`` and ``open`` in seconds.
    """
    from . import state as states

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state")
        start = time.perf_counter()
        states.save(states.State(cache), path, model)
        saved = time.perf_counter()
        model._fingerprint = None  # another process has not computed it yet
        again = time.perf_counter()
        states.load(path, model)
        return {
            "save": saved - start,
            "open": time.perf_counter() - again,
            "file": os.path.getsize(path),
        }


def benchmark(args: argparse.Namespace) -> None:
    if min(args.prompt_tokens) < 1 or args.generation_tokens < 1:
        raise SettingError("-p and -g must be at least 1")

    import mlx.core as mx

    from .loading import load
    from .model import base_model

    model, _ = load(args.model, model_config=sizes(args))
    config = model.allmem
    print(
        f"window {config.window}, sinks {config.sinks}, chunk {config.chunk}, "
        f"blocks of {config.chunk} tokens, {mx.default_device()}"
    )
    models = {"allmem": model}
    if args.full_attention:
        models["full"] = base_model(model)
    mx.random.seed(0)
    vocabulary = model.base_config["vocab_size"]
    longest = max(args.prompt_tokens)
    tokens: Any = mx.random.randint(0, vocabulary, (longest,)).tolist()
    for candidate in models.values():  # warm up
        measure(candidate, tokens[: config.chunk], 2, config.chunk)

    print(
        "  tokens model   prefill tok/s  decode tok/s  peak GB  cache MB  "
        "prefill/token  decode/token"
    )
    first: dict[str, dict[str, Any]] = {}
    for length in sorted(args.prompt_tokens):
        rows = {}
        for name, candidate in models.items():
            row = measure(
                candidate, tokens[:length], args.generation_tokens, config.chunk
            )
            row["prefill per token"] = row["prefill"] / length
            row["decode per token"] = row["decode"] / args.generation_tokens
            rows[name] = row
            base = first.setdefault(name, row)
            print(
                f"{length:8d} {name:6} {1 / row['prefill per token']:14.1f} "
                f"{1 / row['decode per token']:13.1f} {row['peak'] / 1e9:8.3f} "
                f"{row['bytes'] / 1e6:9.1f} "
                f"{row['prefill per token'] / base['prefill per token']:13.2f}x "
                f"{row['decode per token'] / base['decode per token']:12.2f}x",
                flush=True,
            )
            cache = row.pop("cache")
            if name == "allmem":
                file = measure_file(model, cache)
                print(
                    f"{length:8d} state file: {file['file']} bytes, saved in "
                    f"{file['save']:.3f} s, opened in {file['open']:.3f} s, "
                    f"{100 * file['open'] / row['prefill']:.2f} % of the reading",
                    flush=True,
                )
            del cache
        if "full" in rows:
            ratios = {
                name: rows["full"][name] / rows["allmem"][name]
                for name in ("prefill", "decode", "bytes")
            }
            print(
                f"{length:8d} full/allmem: "
                + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
                flush=True,
            )


def main() -> None:
    run(setup_arg_parser(), benchmark)


if __name__ == "__main__":
    main()
