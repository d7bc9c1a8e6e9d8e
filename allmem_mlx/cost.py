"""What a model costs by arithmetic, at any length: operations, bytes, state, and the
speed that a chip's bandwidth and arithmetic allow. No weights are needed."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .cli.flags import add_sizes, sizes
from .cli.report import Panel, add_output, check_output, panels, table, write_output
from .cli.run import ArgumentParser, run
from .errors import SettingError

if TYPE_CHECKING:
    from .benchmarking.flops import Sizes
    from .model import Model

LENGTHS = [1024, 4096, 8192, 16384, 32768, 65536, 131072]


class Chip(NamedTuple):
    """A Mac's chip.

    Args:
        bandwidth (float): GB/s, as Apple states it.
        arithmetic (float): TFLOPS in float32 or narrower: the peak, or what was
            reported as reached where no peak is stated. ``None`` if neither is known.
    """

    name: str
    bandwidth: float
    arithmetic: float | None


CHIPS = [
    Chip("M1", 68, 2.6),
    Chip("M1 Pro", 200, 5.2),
    Chip("M1 Max", 400, 10.4),
    Chip("M2", 100, 3.55),
    Chip("M3", 100, None),
    Chip("M4", 120, 2.9),
    Chip("M4 Pro", 273, None),
    Chip("M4 Max", 546, 14.0),
    Chip("M5", 153, None),
    Chip("M5 Max", 614, 40.0),
]

# AllMem (arXiv 2602.13680), Figure 3: window 4,096 and chunk 2,048; the sinks are those
# of its tables.
PAPER = {"window": 4096, "sinks": 128, "chunk": 2048}
PAPER_LENGTH = 131072
QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
PAPER_MODELS = {
    "Qwen3-0.6B": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
}


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="allmem_mlx.cost", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_CONFIG",
        help="A model folder, converted or not, or a config.json. Default: the "
        "embedded SmolLM2-135M-Instruct",
    )
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=LENGTHS,
        metavar="N",
        help="Tokens. Default: %(default)s",
    )
    add_sizes(parser)
    add("--paper", action="store_true", help="The paper's Figure 3 instead of a model")
    add_output(parser)
    return parser


def lazy_model(config: dict[str, Any], allmem: dict[str, Any]) -> "Model":
    """A model of which nothing is evaluated, and no file read.

    Args:
        config (dict): ``config.json`` of a converted model, or of a base.
        allmem (dict): settings that differ from its own, or from the defaults.

    Raises:
        AllMemError: if the base is not supported, or a setting impossible.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_map_with_path

    from .config import AllMemConfig
    from .convert.base_config import carry_over, language_model
    from .model import MODEL_TYPE, Model, ModelArgs

    if config.get("model_type") == MODEL_TYPE:
        block = {**config.get("allmem", {}), **allmem}
        args = ModelArgs.from_dict({**config, "allmem": block})
    else:
        config = language_model(config)
        base = {**config, **carry_over(config)}
        args = ModelArgs(base=base, allmem=AllMemConfig.for_base(base, **allmem))
    model = Model(args)
    named = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    dtype = getattr(mx, str(named), mx.bfloat16)
    keep = model.cast_predicate
    model.update(
        tree_map_with_path(
            lambda name, x: x.astype(dtype) if keep(name) else x, model.parameters()
        )
    )
    if packed := config.get("quantization"):
        allowed = model.quant_predicate

        def quantized(path: str, module: nn.Module) -> bool | dict:
            if not hasattr(module, "to_quantized") or not allowed(path, module):
                return False
            return packed.get(path, True)

        nn.quantize(
            model,
            packed["group_size"],
            packed["bits"],
            mode=packed.get("mode", "affine"),
            class_predicate=quantized,
        )
    return model


def costs(sizes: "Sizes", length: int) -> dict[str, Any]:
    """Every number for one length; operations in FLOP, sizes in bytes."""
    from .benchmarking import flops

    full, window, allmem = (
        flops.operations(sizes, length, **which)
        for which in ({"full": True}, {"memory": False}, {})
    )
    cache = flops.cache_bytes(sizes, length)
    state = flops.ring_bytes(sizes) + flops.memory_bytes(sizes)
    return {
        "length": length,
        "reading": {
            "full attention": asdict(full),
            "window + sinks": asdict(window),
            "AllMem": asdict(allmem),
        },
        "token mixer": {
            "full attention": full.mixer,
            "window + sinks": window.mixer,
            "AllMem": allmem.mixer,
        },
        "token mixer, AllMem / full": allmem.mixer / full.mixer,
        "all, AllMem / full": allmem.total / full.total,
        "memory, share of reading": allmem.memory / allmem.total,
        "state": {
            "full attention": cache,
            "window + sinks": flops.ring_bytes(sizes),
            "AllMem": state,
        },
        "state, AllMem / full": state / cache,
        "decoding": {
            name: {
                "operations": flops.decoding_operations(sizes, length, full=flag),
                "bytes": asdict(flops.decoding_bytes(sizes, length, full=flag)),
            }
            for name, flag in (("full attention", True), ("AllMem", False))
        },
    }


def _fraction(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}" if ratio < 0.5 else f"{ratio:.2f}"


def describe(sizes: "Sizes", rows: list[dict[str, Any]]) -> str:
    """The tables of a model."""
    reading, decoding = [], []
    for row in rows:
        length = row["length"]
        reading.append(
            [
                f"{length:,}",
                *(f"{x / 1e9:,.1f}" for x in row["token mixer"].values()),
                f"{row['reading']['AllMem']['channel'] / 1e9:,.1f}",
                _fraction(row["token mixer, AllMem / full"]),
                _fraction(row["all, AllMem / full"]),
                *(f"{x / 1e6:,.1f}" for x in row["state"].values()),
                _fraction(row["state, AllMem / full"]),
            ]
        )
        full, allmem = (
            {**x["bytes"], "all": sum(x["bytes"].values())}
            for x in row["decoding"].values()
        )
        decoding.append(
            [
                f"{length:,}",
                f"{full['all'] / 1e6:,.1f}",
                f"{allmem['all'] / 1e6:,.1f}",
                *(f"{allmem[x] / 1e6:,.1f}" for x in allmem if x != "all"),
                f"{100 * allmem['memory'] / allmem['all']:.1f} %",
            ]
        )
    share = 100 * rows[-1]["memory, share of reading"]
    lines = [
        "Reading: GFLOP of the token mixers and of the channel mixers; state in MB",
        table(
            [
                "tokens",
                "full attention",
                "window + sinks",
                "AllMem",
                "channel",
                "mixers",
                "all",
                "full, MB",
                "window, MB",
                "AllMem, MB",
                "state",
            ],
            reading,
        ),
        f"The memory's share of AllMem's reading: {share:.1f} % of the operations",
        "",
        "Decoding a token: MB moved at least",
        table(
            [
                "after",
                "full attention",
                "AllMem",
                "weights",
                "window",
                "memory",
                "memory's share",
            ],
            decoding,
        ),
    ]
    return "\n".join(lines)


def roofline(sizes: "Sizes", length: int) -> list[dict[str, Any]]:
    """Tokens per second that a chip's bandwidth (decoding) and arithmetic (reading)
    allow; no program reaches them."""
    from .benchmarking import flops

    rows = []
    for chip in CHIPS:
        row: dict[str, Any] = {"chip": chip.name}
        for name, full in (("full attention", True), ("AllMem", False)):
            moved = flops.decoding_bytes(sizes, length, full=full).total
            reading = flops.operations(sizes, length, full=full).total / length
            row[name] = {
                "decoding": chip.bandwidth * 1e9 / moved,
                "reading": chip.arithmetic and chip.arithmetic * 1e12 / reading,
            }
        rows.append(row)
    return rows


def describe_roofline(rows: list[dict[str, Any]], length: int) -> str:
    kinds = ("full attention", "AllMem")
    cells = [
        [
            row["chip"],
            *(
                f"{row[kind][what]:,.0f}" if row[kind][what] else "-"
                for what in ("reading", "decoding")
                for kind in kinds
            ),
        ]
        for row in rows
    ]
    head = [
        "chip",
        *(f"{what}, {kind}" for what in ("reading", "decoding") for kind in kinds),
    ]
    return (
        f"At most, tokens/s at {length:,} tokens (arithmetic, not measured)\n"
        + table(head, cells)
    )


def paper() -> tuple[str, dict[str, Any]]:
    """Figure 3 of the paper, counted: what it says of 128k tokens, and what follows."""
    from .benchmarking.flops import Sizes

    lines, found = [], {}
    for name, config in PAPER_MODELS.items():
        sizes = Sizes.of(lazy_model(config, PAPER))
        rows = [costs(sizes, n) for n in LENGTHS if n >= PAPER["window"]]
        found[name] = rows
        last = rows[-1]
        buffer = 2 * sizes.config.heads * sizes.config.head_dim * PAPER["chunk"]
        held = last["state"]["window + sinks"] / sizes.itemsize
        numbers = held + 3 * sizes.fast_weights
        full = last["state"]["full attention"] / sizes.itemsize
        buffered = held + 2 * sizes.fast_weights + sizes.hybrids * buffer
        lines += [
            f"{name}, window 4,096, 128 sinks, chunk 2,048",
            describe(sizes, rows),
            "",
            f"At {PAPER_LENGTH:,} tokens the paper has about 1/9 of full attention for "
            "both, operations and cache.",
            "Token mixers, operations: "
            f"{_fraction(last['token mixer, AllMem / full'])}; with channel mixers: "
            f"{_fraction(last['all, AllMem / full'])}",
            f"Cache, numbers: {_fraction(numbers / full)} (W, M and G beside the "
            f"window), {_fraction(buffered / full)} if keys and values of the open "
            "chunk are kept in place of G. The paper's 1/9 does not follow.",
            "",
        ]
    return "\n".join(lines).rstrip(), found


def plot(rows: list[dict[str, Any]], title: str) -> bytes:
    """Operations and state by length, as a PNG."""
    mixers: dict[str, list[tuple[float, float]]] = {}
    state: dict[str, list[tuple[float, float]]] = {}
    for name in rows[0]["state"]:
        mixers[name] = [(x["length"], x["token mixer"][name] / 1e9) for x in rows]
        state[name] = [(x["length"], x["state"][name] / 1e6) for x in rows]
    drawn = [
        Panel("tokens", "token mixers, GFLOP to read", mixers, y_log=True),
        Panel("tokens", "state, MB", state, y_log=True),
    ]
    return panels(drawn, title)


def cost(args: argparse.Namespace) -> None:
    if min(args.lengths) < 1:
        raise SettingError("--lengths must be at least 1")
    check_output(args)
    if args.paper:
        text, found = paper()
        title = "Qwen3-0.6B, window 4,096, 128 sinks, chunk 2,048"
        rows = found["Qwen3-0.6B"]
    else:
        text, title, found = of_model(args)
        rows = found["rows"]
    print(text)
    write_output(args, found, lambda: plot(rows, title))


def of_model(args: argparse.Namespace) -> tuple[str, str, dict[str, Any]]:
    """The tables of the model asked for, what it is, and its numbers."""
    from .benchmarking.flops import Sizes

    of = Sizes.of(lazy_model(_config(args.model), sizes(args)))
    c, longest = of.config, max(args.lengths)
    rows = [costs(of, n) for n in sorted(args.lengths)]
    roof = roofline(of, longest)
    title = f"window {c.window}, {c.sinks} sinks, chunk {c.chunk}"
    lines = [
        f"{title}; {c.heads} memory heads of {c.head_dim}, hidden {c.hidden_dim}; "
        f"weights {(of.weights + of.memory_weights) / 1e6:,.1f} MB, of the memory "
        f"{of.memory_weights / 1e6:,.1f} MB",
        describe(of, rows),
        "",
        describe_roofline(roof, longest),
    ]
    found = {"sizes": asdict(of), "rows": rows, "roofline": roof}
    return "\n".join(lines), title, found


def _config(path: str | None) -> dict[str, Any]:
    from .default_model import default_model
    from .model_folder import read_config
    from .weight_files import read_json

    if path is None:
        return read_config(default_model())
    return read_json(Path(path)) if Path(path).is_file() else read_config(Path(path))


def main() -> None:
    run(setup_arg_parser(), cost)


if __name__ == "__main__":
    main()
