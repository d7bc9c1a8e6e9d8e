"""The MLX layer, streamed in cuts, against the whole-sequence PyTorch oracle."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
import torch
from helpers import (
    TINY_ALLMEM,
    TINY_BASE,
    assert_close,
    random_cuts,
    relative_error,
    tiny_model,
)
from mlx.utils import tree_flatten

from allmem_mlx.config import UPDATES
from allmem_mlx.memory.layer import MemoryState

CHUNK, FOLD = TINY_ALLMEM["chunk"], TINY_ALLMEM["fold"]
# Five chunks, two folded blocks and three tokens that wait in the open one.
LENGTH = 5 * CHUNK + 2 * FOLD + 3
TOLERANCE = 1e-5
BITES = 1e-3

# The matrices are too small to share out.
torch.set_num_threads(1)


def selective_model(family="qwen3", **allmem):
    """A trained-like model; its first layer attends sharply and no norm is all ones."""
    model = tiny_model(family, **allmem)
    layer = model.layers[0].self_attn
    layer.q_proj.weight = 3 * layer.q_proj.weight
    if "q_norm" in layer:
        for norm in (layer.q_norm, layer.k_norm):
            norm.weight = norm.weight + 0.3 * mx.random.normal(norm.weight.shape)
    return model


def oracle_of(model, dtype=torch.float64) -> oracle.HybridAttention:
    """The oracle with the weights of the first layer."""
    arrays = tree_flatten(model.layers[0].self_attn.parameters())
    layer = oracle.HybridAttention(model.base_config, model.allmem, dtype)
    return layer.load_arrays({name: np.array(x) for name, x in arrays})


def normed_input(batch=1, length=LENGTH) -> np.ndarray:
    shape = (batch, length, TINY_BASE["hidden_size"])
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def cut_sizes(kind, length=LENGTH) -> list[int]:
    """Sizes that add up to ``length``, none crossing the chunk grid."""
    chunks = random_cuts(length, seed=0, sizes=(CHUNK,))
    if kind == "whole chunks":
        return chunks
    sizes = {"ones": (1,), "mixed": (1, 2, 7, 8, 13, 25, CHUNK)}[kind]
    return [x for i, size in enumerate(chunks) for x in random_cuts(size, i, sizes)]


def embedded(u: np.ndarray) -> np.ndarray:
    """Other vectors of the same size, in the place of the tokens' embeddings."""
    return u[..., ::-1].copy()


def run_oracle(layer, u):
    with torch.no_grad():
        return layer(
            *(torch.tensor(x, dtype=layer.alpha.dtype) for x in (u, embedded(u)))
        )


def run_mlx(model, u, cuts):
    """Output and state of the first layer, the state in the oracle's form."""
    layer, cache = model.layers[0].self_attn, model.make_cache()[0]
    out, start = [], 0
    for size in cuts:
        block = slice(start, start + size)
        cache.embedded = mx.array(embedded(u)[:, block])
        out.append(layer(mx.array(u[:, block]), cache=cache))
        mx.eval(out[-1], cache.state)
        start += size
    assert start == u.shape[1] == cache[0].offset
    memory = MemoryState.from_arrays(cache[1].cache)
    state = oracle.LayerState(cache[0].keys, cache[0].values, memory)
    return mx.concatenate(out, axis=1), state


def state_parts(state: oracle.LayerState) -> dict:
    memory = state.memory
    parts = {
        "keys": state.keys,
        "values": state.values,
        "conv tail": memory.conv_state,
        "open block": memory.pending,
        "decay sum": memory.decay_sum,
    }
    for name in ("weights", "scales", "momentum", "grads"):
        matrices = reversed(getattr(memory, name) or ())
        names = (f"{name} {matrix}" for matrix in ("down", "up", "gate"))
        parts |= dict(zip(names, matrices, strict=False))
    return {name: x for name, x in parts.items() if x is not None}


def assert_agree(model, u, kind="mixed", dtype=torch.float64):
    """Output and every part of the state."""
    expected, expected_state = run_oracle(oracle_of(model, dtype), u)
    actual, state = run_mlx(model, u, cut_sizes(kind, u.shape[1]))
    assert_close("output", actual, expected, TOLERANCE)
    parts, expected_parts = state_parts(state), state_parts(expected_state)
    assert parts.keys() == expected_parts.keys()
    for name, x in expected_parts.items():
        assert_close(name, parts[name], x, TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["whole chunks", "ones", "mixed"])
@pytest.mark.parametrize("window", [24, 48])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_layer_agrees_for_any_cut(family, window, kind, batch):
    assert_agree(selective_model(family, window=window), normed_input(batch), kind)


@pytest.mark.parametrize(
    "allmem",
    [
        {"positions": "absolute"},
        {"positions": "absolute", "window": 24},
        {"window": 1},
        {"window": 2 * LENGTH},
        {"sinks": 0},
        {"sinks": CHUNK + 5},
        {"fold": 1},
        {"fold": CHUNK},
        {"conv_kernel": 1},
        {"conv_kernel": 2},
        {"heads": 3, "head_dim": 8, "hidden_dim": 24},
        {"learning_rate": 1e-3},
        {"output_eps": 0.5},
        {"values": "token"},
        {"updates": "down"},
        {"updates": "down", "fold": CHUNK, "conv_kernel": 1},
        {"updates": "down", "values": "token", "max_update_norm": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ones", "mixed"])
def test_layer_agrees_for_every_setting(allmem, kind):
    assert_agree(selective_model(**allmem), normed_input(), kind)


@pytest.mark.parametrize(
    "length",
    [1, 2, FOLD, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 2 * FOLD],
)
@pytest.mark.parametrize("kind", ["ones", "mixed"])
def test_layer_agrees_at_any_length(length, kind):
    assert_agree(selective_model(), normed_input(2, length), kind)


def test_layer_agrees_with_the_oracle_in_float32():
    assert_agree(selective_model(), normed_input(2), dtype=torch.float32)


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("scale", [1e-3, 1e-6, 0])
def test_layer_agrees_where_an_epsilon_decides(scale, updates):
    """Rows of up are so small that rescaling them to their own norms changes them."""
    model = selective_model(updates=updates)
    memory = model.layers[0].self_attn.memory
    memory.w0_up = 1e-4 * memory.w0_up
    assert_agree(model, np.float32(scale) * normed_input())


@pytest.mark.parametrize(
    "theta, least, most", [(0.05, 1, 1), (3.0, 0.1, 0.9), (1e3, 0, 0)]
)
@pytest.mark.parametrize("kind", ["ones", "mixed"])
def test_layer_agrees_with_and_without_clipping(theta, least, most, kind):
    model, u = selective_model(max_update_norm=theta), normed_input(2)
    norms, layer = [], oracle_of(model)
    clip = layer.memory.clip

    def record(grad):
        norms.append(grad.norm(dim=(-2, -1)))
        return clip(grad)

    layer.memory.clip = record
    run_oracle(layer, u)
    assert len(norms) == 3 * (LENGTH // CHUNK)
    clipped = (torch.stack(norms) > theta).double().mean().item()
    assert least <= clipped <= most
    assert_agree(model, u, kind)


def read_after_write(layer):
    memory, step = layer.memory, layer.memory.step

    def wrong(weights, momentum, chunk):
        _, weights, momentum = step(weights, momentum, chunk)
        return memory.read(weights, chunk.queries), weights, momentum

    memory.step = wrong


def read_normalized(layer):
    memory, step = layer.memory, layer.memory.step

    def wrong(weights, momentum, chunk):
        read, weights, momentum = step(weights, momentum, chunk)
        return read, memory.normalize(weights), momentum

    memory.step = wrong


def gradient_before_normalizing(layer):
    memory, seen = layer.memory, []
    gradient, normalize = memory.gradient, memory.normalize

    def remember(weights):
        seen.append(weights)
        return normalize(weights)

    memory.normalize = remember
    memory.gradient = lambda _, tokens: gradient(seen[-1], tokens)


def no_normalization(layer):
    layer.memory.normalize = lambda weights: weights


def no_momentum(layer):
    step = layer.memory.step
    layer.memory.step = lambda weights, momentum, chunk: step(
        weights, tuple(0 * m for m in momentum), chunk
    )


def no_clip(layer):
    layer.memory.clip = lambda grad: grad


def clip_all_heads_together(layer):
    theta = layer.config.max_update_norm

    def wrong(grad):
        norm = grad.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return grad * theta / norm.clamp(min=theta)

    layer.memory.clip = wrong


def rates_of_another_matrix(layer):
    gradient = layer.memory.gradient
    layer.memory.gradient = lambda weights, tokens: gradient(
        weights, tokens._replace(rates=tokens.rates.roll(1, dims=-1))
    )


def taps_reversed(layer):
    layer.memory.conv_weight.data = layer.memory.conv_weight.data.flip(-1)


def window_on_top_of_the_query(layer):
    visible = layer.visible
    layer.visible = lambda query, key: visible(query, key) | visible(query, key + 1)


def sinks_forgotten(layer):
    window = layer.config.window
    layer.visible = lambda query, key: (key <= query) & (query - key < window)


def positions_not_shifted(layer):
    layer.positions = lambda tokens, chunk: tokens


MISTAKES = [
    read_after_write,
    read_normalized,
    no_normalization,
    no_momentum,
    no_clip,
    clip_all_heads_together,
    rates_of_another_matrix,
    taps_reversed,
    window_on_top_of_the_query,
    sinks_forgotten,
    positions_not_shifted,
]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    "updates, mistake",
    [
        *((updates, mistake) for updates in UPDATES for mistake in MISTAKES),
        # The gradient of down does not depend on down.
        ("all", gradient_before_normalizing),
    ],
)
def test_a_wrong_layer_disagrees(family, updates, mistake):
    model, u = selective_model(family, updates=updates), normed_input()
    actual, _ = run_mlx(model, u, cut_sizes("mixed"))
    layer = oracle_of(model)
    mistake(layer)
    error = relative_error(actual, run_oracle(layer, u)[0])
    assert error > BITES
