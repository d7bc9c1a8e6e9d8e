"""The costs by arithmetic, against what the running model does."""

import copy
import json
import runpy

import mlx.core as mx
import mlx.nn as nn
import pytest
from helpers import activate_memory, random_tokens, tiny_args, tiny_model
from launches import count, count_step
from mlx_lm.models.cache import make_prompt_cache
from processes import ROOT, run

from allmem_mlx import load
from allmem_mlx.benchmarking import flops
from allmem_mlx.benchmarking.costs import costs, lazy_model
from allmem_mlx.model import Model
from allmem_mlx.responses import state_bytes
from allmem_mlx.variants import base_model

PAPER = runpy.run_path(str(ROOT / "examples" / "paper_figure_3.py"))


def read(model, tokens: int):
    """A cache that has read so many tokens."""
    cache = make_prompt_cache(model)
    if tokens:
        model(random_tokens(1, tokens), cache=cache)
    mx.eval([part.state for part in cache])
    return cache


def near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 0.02 * expected


def decoding(model, cache, tokens: int) -> tuple[float, float]:
    """Mean operations and bytes of one token of several."""
    counts = []
    for i in range(tokens):
        token = random_tokens(1, 1, seed=i)
        counts.append(count_step(model, cache, token))
        model(token, cache=cache)
        mx.eval([part.state for part in cache])
    return (
        sum(x.operations for x in counts) / tokens,
        sum(x.bytes for x in counts) / tokens,
    )


def expected_reading(sizes, before: int, **which) -> int:
    """Operations for a chunk after ``before`` tokens, logits included."""
    chunk = sizes.config.chunk
    longer, shorter = (
        flops.reading(sizes, n, block=chunk, **which).total
        for n in (before + chunk, before)
    )
    return longer - shorter + 2 * sizes.head * chunk


def assert_as_counted(model):
    sizes = flops.Sizes.of(model)
    c = sizes.config
    before = 4 * (c.window + c.sinks) // c.chunk * c.chunk  # on the grid, and deep
    cache = read(model, before)
    state = flops.ring_bytes(sizes) + flops.memory_bytes(sizes)
    assert state_bytes(cache) == state
    counted = count_step(model, copy.deepcopy(cache), random_tokens(1, c.chunk))
    assert near(counted.operations, expected_reading(sizes, before))
    operations, moved = decoding(model, cache, c.chunk)
    assert near(operations, flops.decoding(sizes, before))
    assert near(moved, flops.decoding_bytes(sizes, before).total)


def assert_as_counted_with_full_attention(model):
    sizes, full = flops.Sizes.of(model), base_model(model)
    chunk, before = sizes.config.chunk, 7 * sizes.config.chunk
    counted = count_step(full, read(full, before), random_tokens(1, chunk))
    assert near(counted.operations, expected_reading(sizes, before, full=True))
    before = 255  # mlx-lm's cache grows by 256 tokens; it is full after the next
    operations, moved = decoding(full, read(full, before), 1)
    assert near(operations, flops.decoding(sizes, before, full=True))
    assert near(moved, flops.decoding_bytes(sizes, before, full=True).total)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_as_counted(family):
    model = tiny_model(family, chunk=32, window=48, fold=8, hidden_dim=64)
    assert_as_counted(model)
    assert_as_counted_with_full_attention(model)


def test_as_counted_beside_sliding_layers():
    args = tiny_args(chunk=32, window=48, fold=8)
    args.base["layer_types"] = ["sliding_attention", "full_attention"]
    args.base["sliding_window"] = 40
    model = Model(args)
    activate_memory(model)
    mx.eval(model.parameters())
    assert flops.Sizes.of(model).sliding == (40,)
    assert_as_counted(model)


def test_as_counted_when_quantized():
    model = tiny_model(chunk=32, window=48, fold=8)
    allowed = model.quant_predicate
    nn.quantize(
        model,
        group_size=32,
        bits=4,
        class_predicate=lambda name, module: (
            hasattr(module, "to_quantized") and allowed(name, module)
        ),
    )
    mx.eval(model.parameters())
    assert_as_counted(model)


@pytest.mark.real_model
def test_as_counted_default(default_folder):
    """With fewer tokens in a window and in a chunk."""
    sizes = {"window": 128, "chunk": 16, "fold": 16}
    model, _ = load(default_folder, model_config=sizes)
    assert_as_counted(model)
    assert_as_counted_with_full_attention(model)


def test_count():
    a, b = mx.zeros((4, 8)), mx.zeros((8, 2))
    kept = mx.zeros((100, 2))
    mx.eval(b, kept)

    def function(x):
        table = kept[...]
        table[:4] = x @ b
        return [table, b]

    counts = count(function, a)
    assert counts.operations == 2 * 4 * 8 * 2
    assert counts.read == 8 * 2 * 4  # b; of what is written into, nothing
    assert counts.written == 4 * 2 * 4  # only the rows that are new
    assert counts.primitives["Matmul"] == 1


@pytest.mark.parametrize(("window", "sinks"), [(1000, 0), (1, 0), (7, 3), (40, 16)])
def test_pairs(window, sinks):
    seen = [sum(i - j < window or j < sinks for j in range(i + 1)) for i in range(100)]
    for length in (1, 6, 57, 100):
        assert flops.pairs(length, window, sinks) == sum(seen[:length])


@pytest.mark.parametrize(
    ("name", "mixer", "everything"),
    [("Qwen3-0.6B", 10.5, 8.0), ("Qwen3-1.7B", 8.2, 4.4)],
)
def test_figure_3(name, mixer, everything):
    """About 1/9 of the operations of full attention at 128k, as the paper has it."""
    sizes = flops.Sizes.of(lazy_model(PAPER["MODELS"][name], PAPER["SETTINGS"]))
    row = costs(sizes, 131072)
    assert round(1 / row["token mixer, AllMem / full"], 1) == mixer
    assert round(1 / row["all, AllMem / full"], 1) == everything
    assert round(1 / row["state, AllMem / full"]) == 27
    added = {"Qwen3-0.6B": 66, "Qwen3-1.7B": 126}  # million parameters, its table
    projections = sizes.memory_layers * flops.memory_flops(sizes) / 2
    assert projections > 0.9 * added[name] * 1e6


def test_command(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PAPER["MODELS"]["Qwen3-0.6B"]))
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    result = run(
        "allmem_mlx.cost",
        *("--model", config, "--lengths", 512, 4096, "--window", 256),
        *("--json", out, "--plot", png),
    )
    assert result.returncode == 0, result.stderr.decode()
    printed = result.stdout.decode()
    assert printed.startswith("window 256, 128 sinks, chunk 512; 8 memory heads of 64")
    found = json.loads(out.read_text())
    assert [row["length"] for row in found["rows"]] == [512, 4096]
    assert found["sizes"]["memory_layers"] == 28
    assert png.read_bytes().startswith(b"\x89PNG")


def test_paper():
    result = run("examples/paper_figure_3.py")
    printed = result.stdout.decode()
    assert "Token mixers, FLOPs: 1/10.5" in printed
    assert "Token mixers, FLOPs: 1/8.2" in printed
    assert "Cache, elements: 1/29.0" in printed


def test_refused(tmp_path):
    broken = tmp_path / "config.json"
    broken.write_text("[]")
    for flags, said in (
        (("--model", broken), "does not hold an object"),
        (("--model", tmp_path / "none"), "not a model folder"),
        (("--lengths", 0), "--lengths must be at least 1"),
    ):
        result = run("allmem_mlx.cost", *flags)
        assert result.returncode in (1, 2), said
        assert said in result.stderr.decode()
        assert result.stderr.decode().count("\n") == 1
