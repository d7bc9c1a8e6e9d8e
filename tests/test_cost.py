"""The costs by arithmetic, against what the running model does."""

import copy
import json
import runpy

import mlx.core as mx
import mlx.nn as nn
import pytest
from family_cases import settings
from helpers import (
    TINY_ALLMEM,
    activate_memory,
    random_tokens,
    slow_beyond,
    tiny_args,
    tiny_model,
)
from launches import count, count_step
from mlx_lm.models.cache import make_prompt_cache
from processes import ROOT, run
from transformers import AutoConfig

from allmem_mlx import load
from allmem_mlx.benchmarking import flops
from allmem_mlx.benchmarking.costs import costs, lazy_model
from allmem_mlx.cache import recurrent_caches
from allmem_mlx.config import UPDATES
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


def operations(counts, cache, tokens: int) -> int:
    """The operations of a graph. On a CPU, DeltaNet multiplies its state with vectors
    element by element, and once more to let it fade."""
    found = counts.operations
    for part in recurrent_caches(cache):
        state = part.cache[-1]
        products = counts.multiplied[state.shape] // len(recurrent_caches(cache))
        found += 2 * state.size * max(0, products - tokens)
    return found


def decoding(model, cache, tokens: int) -> tuple[float, float]:
    """Mean operations and bytes of one token of several."""
    done, moved = 0, 0
    for i in range(tokens):
        token = random_tokens(1, 1, seed=i)
        counts = count_step(model, cache, token)
        done += operations(counts, cache, 1)
        moved += counts.bytes
        model(token, cache=cache)
        mx.eval([part.state for part in cache])
    return done / tokens, moved / tokens


def expected_reading(sizes, before: int, **which) -> int:
    """Operations for a chunk after ``before`` tokens, logits included."""
    chunk = sizes.config.chunk
    longer, shorter = (
        flops.reading(sizes, n, block=chunk, **which).total
        for n in (before + chunk, before)
    )
    return longer - shorter + 2 * sizes.head * chunk


def assert_reading_as_counted(model, cache, sizes, before: int, **which):
    chunk = sizes.config.chunk
    counted = count_step(model, copy.deepcopy(cache), random_tokens(1, chunk))
    expected = expected_reading(sizes, before, **which)
    assert near(operations(counted, cache, chunk), expected)


def reads_as_it_decodes(model) -> bool:
    """mlx-lm's Mamba-2 reads by another algorithm than it decodes, with more products
    the more tokens there are."""
    return model.family.recurrent != "Mamba-2"


def assert_as_counted(model):
    sizes = flops.Sizes.of(model)
    c = sizes.config
    before = 4 * (c.window + c.sinks) // c.chunk * c.chunk  # on the grid, and deep
    cache = read(model, before)
    state = flops.ring_bytes(sizes) + flops.memory_bytes(sizes) + sizes.recurrent_state
    assert state_bytes(read(model, before - 1)) == state > state_bytes(cache)
    if reads_as_it_decodes(model):
        assert_reading_as_counted(model, cache, sizes, before)
    done, moved = decoding(model, cache, c.chunk)
    assert near(done, flops.decoding(sizes, before))
    assert near(moved, flops.decoding_bytes(sizes, before).total)


def assert_as_counted_with_full_attention(model):
    sizes, full = flops.Sizes.of(model), base_model(model)
    before = 7 * sizes.config.chunk
    if reads_as_it_decodes(model):
        cache = read(full, before)
        assert_reading_as_counted(full, cache, sizes, before, full=True)
    before = 255  # mlx-lm's cache grows by 256 tokens; it is full after the next
    done, moved = decoding(full, read(full, before), 1)
    assert near(done, flops.decoding(sizes, before, full=True))
    assert near(moved, flops.decoding_bytes(sizes, before, full=True).total)


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_as_counted(family, updates):
    sizes = {"chunk": 32, "window": 48, "fold": 8, "hidden_dim": 64}
    model = tiny_model(family, **sizes, updates=updates)
    assert_as_counted(model)
    assert_as_counted_with_full_attention(model)


def case_model(name: str):
    """A model of ``family_cases.py``, with an active memory."""
    family, config = settings(name)
    config = AutoConfig.for_model(family, **config).to_dict()
    sizes = {**TINY_ALLMEM, "window": 24, "hidden_dim": 64}
    model = lazy_model({**config, "torch_dtype": "float32"}, sizes)
    mx.random.seed(0)
    activate_memory(model)
    mx.eval(model.parameters())
    return model


RECURRENT = {
    "qwen3_5_moe": "gated DeltaNet",
    "falcon_h1": "Mamba-2",
    "olmo_hybrid": "gated DeltaNet",
    "lfm2_moe": "convolution",
    "granitemoehybrid": "Mamba-2",
    "nemotron_h": "Mamba-2",
    "jamba": "Mamba",
}


@pytest.mark.parametrize("name", slow_beyond(2, RECURRENT))
def test_as_counted_beside_recurrent_layers(name):
    model = case_model(name)
    assert model.family.recurrent == RECURRENT[name]
    assert flops.Sizes.of(model).recurrent_state > 0
    assert_as_counted(model)
    assert_as_counted_with_full_attention(model)


@pytest.mark.parametrize("name", ["qwen3_5", "olmo_hybrid", "falcon_h1", "lfm2"])
def test_products_with_a_recurrent_state(name):
    """Exactly, as they are few beside the projections of a tiny model."""
    model = case_model(name)
    cache = read(model, 64)
    counts = count_step(model, cache, random_tokens(1, 1))
    found = operations(counts, cache, 1) - counts.operations
    for size in {part.cache[-1].size for part in recurrent_caches(cache)}:
        found += counts.by_size[size]
    assert found == flops.Sizes.of(model).recurrence


def test_token_mixers_and_channel_mixers():
    sizes = flops.Sizes.of(case_model("qwen3_5_moe"))
    delta_net = 64 * (2 * 32 + 32 + 32 + 2 * 4) + 32 * 64  # q, k, v, gate, two rates
    attention = 64 * (2 * 64 + 2 * 32) + 64 * 64
    assert sizes.projections == 2 * (delta_net + attention)
    experts = 64 * 4 + 2 * 3 * 64 * 24 + 64 + 3 * 64 * 24  # router, two, the shared one
    assert sizes.channel == 4 * experts
    assert sizes.head == 128 * 64


def test_heads_of_every_layer():
    found = flops.Sizes.of(case_model("laguna")).attentions
    assert [layer.heads for layer in found] == [4, 2, 8, 4]
    found = flops.Sizes.of(case_model("mimo_v2_flash")).attentions
    assert {layer.head_dim for layer in found} == {24 + 16}


@pytest.mark.parametrize(
    "name",
    slow_beyond(
        1,
        [
            "gpt_oss",
            "gemma4_text",
            "gemma4_text, experts, keys as values",
            "laguna",
            "mimo_v2_flash",
        ],
    ),
)
def test_as_counted_with_heads_of_many_sizes(name):
    """Experts, layers that slide, and those that read another layer's keys."""
    assert_as_counted(case_model(name))


def test_as_counted_with_packed_experts():
    model = case_model("qwen3_5_moe")
    quantize(model)
    assert_as_counted(model)


def test_as_counted_beside_sliding_layers():
    args = tiny_args(chunk=32, window=48, fold=8)
    args.base["layer_types"] = ["sliding_attention", "full_attention"]
    args.base["sliding_window"] = 40
    model = Model(args)
    activate_memory(model)
    model.eval()
    mx.eval(model.parameters())
    windows = [x.window for x in flops.Sizes.of(model).attentions]
    assert windows == [40, None]
    assert_as_counted(model)


def quantize(model) -> None:
    allowed = model.quant_predicate
    nn.quantize(
        model,
        group_size=32,
        bits=4,
        class_predicate=lambda name, module: (
            hasattr(module, "to_quantized")
            and module.weight.shape[-1] % 32 == 0
            and bool(allowed(name, module))
        ),
    )
    mx.eval(model.parameters())


def test_as_counted_when_quantized():
    model = tiny_model(chunk=32, window=48, fold=8)
    quantize(model)
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
    form = "8 heads of 64, hidden 128, chunk 512"
    names = (
        "window + sinks: without a memory, as it is now; AllMem: with a trained memory"
    )
    assert f"{names} ({form})\n" in printed
    found = json.loads(out.read_text())
    assert found["title"] == "window 256, 128 sinks, chunk 512"
    assert found["overview"]["layers"] == {"attention over window and sinks": 28}
    for row in found["rows"]:
        full, window, allmem = (x["bytes"] for x in row["decoding"].values())
        assert full["memory"] == window["memory"] == 0 < allmem["memory"]
        assert window["attention"] == allmem["attention"] <= full["attention"]
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
    broken = tmp_path / "list.json"
    broken.write_text("[]")
    odd = tmp_path / "odd.json"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 3}
    odd.write_text(json.dumps(PAPER["QWEN3"] | sizes))
    mamba = tmp_path / "mamba.json"
    mamba.write_text('{"model_type": "mamba"}')
    for flags, said in (
        (("--model", broken), "does not hold an object"),
        (("--model", tmp_path / "none"), "no such model folder"),
        (("--model", tmp_path), "is not a model folder: it has no config.json"),
        (("--model", odd), f"{odd}: its configuration cannot be used: "),
        (("--model", mamba), f"{mamba}: model_type 'mamba' is not supported"),
        (("--model", mamba, "--revision", "v1"), "only the hub has revisions"),
        (("--revision", "v1"), "--revision needs --model"),
        (("--lengths", 0), "--lengths must be at least 1"),
        (("--ram", 0), "--ram is 0; it must be above 0"),
    ):
        result = run("allmem_mlx.cost", *flags)
        assert result.returncode in (1, 2), said
        assert said in result.stderr.decode()
        assert result.stderr.decode().count("\n") == 1
