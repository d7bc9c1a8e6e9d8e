"""The memory branch and the hybrid layer, property by property."""

import importlib
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm
import numpy as np
import oracle
import pytest
import torch
from helpers import (
    TINY_ALLMEM,
    TINY_BASE,
    assert_close,
    feed,
    random_tokens,
    relative_error,
    tiny_model,
)
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import ArraysCache

from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import SettingError
from allmem_mlx.memory.layer import Memory, MemoryState
from allmem_mlx.model import Model

DIMS = TINY_BASE["hidden_size"]
CHUNK = TINY_ALLMEM["chunk"]
KERNEL = 4
SIZES = {"heads": 2, "head_dim": 16, "hidden_dim": 32}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    return model.layers[0].self_attn.memory


def random_input(batch: int, length: int, seed: int = 0) -> mx.array:
    """What a layer's input norm puts out: values of about 1."""
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(size=(batch, length, DIMS)), mx.float32)


def new_cache() -> ArraysCache:
    return ArraysCache(MemoryState.size(3))


def state_of(cache: ArraysCache) -> MemoryState:
    return MemoryState.from_arrays(cache.cache)


def run_memory(memory: Memory, u: mx.array, cache=None) -> mx.array:
    """The branch's output, ``[B, L, D]``, chunk by chunk."""
    cache, outputs = cache or new_cache(), []
    for start in range(0, u.shape[1], CHUNK):
        outputs.append(memory(u[:, start : start + CHUNK], cache, start))
        mx.eval(outputs[-1], cache.cache)
    return mx.concatenate(outputs, axis=1)


def oracle_memory(memory: Memory, u: mx.array) -> np.ndarray:
    """The branch's output as PyTorch computes it in float64."""
    other = oracle.Memory(DIMS, memory.config).double()
    arrays = tree_flatten(memory.parameters())
    other.load_state_dict({name: torch.tensor(np.array(x)) for name, x in arrays})
    with torch.no_grad():
        return other(torch.tensor(np.array(u)).double())[0].numpy()


# A token reaches the memory's answers from the next chunk on


@pytest.mark.parametrize("t", [0, 5, CHUNK - 1, CHUNK + 7, 2 * CHUNK - 2, 3 * CHUNK])
def test_an_edited_token_is_recalled_from_the_next_chunk_on(memory, t):
    u = random_input(1, 4 * CHUNK)
    edited = u[...]
    edited[:, t] = random_input(1, 1, seed=1)[:, 0]

    before, after = run_memory(memory, u), run_memory(memory, edited)

    changed = np.asarray(mx.any(before != after, axis=(0, 2)))
    next_chunk = (t // CHUNK + 1) * CHUNK
    seen_by_conv = range(t, min(t + KERNEL, next_chunk))
    assert not changed[:t].any()
    assert changed[seen_by_conv].all()
    assert not changed[seen_by_conv.stop : next_chunk].any()
    assert changed[next_chunk:].all()


# The first chunk is read with W0


def test_the_first_chunk_is_read_with_the_initial_weights(memory):
    u = random_input(2, CHUNK)
    cache = new_cache()
    output = memory(u, cache, 0)
    assert_close("output", output, oracle_memory(memory, u), 1e-6)


def test_weights_are_w0_exactly_until_the_first_chunk_is_full(memory):
    u = random_input(2, CHUNK)
    cache = new_cache()
    memory(u[:, :-1], cache, 0)
    state = state_of(cache)
    for weights, w0 in zip(state.weights, memory.initial_weights, strict=True):
        assert mx.array_equal(weights, mx.broadcast_to(w0, weights.shape))
    assert not any(mx.any(m) for m in state.momentum)

    memory(u[:, -1:], cache, CHUNK - 1)
    state = state_of(cache)
    for weights, w0 in zip(state.weights, memory.initial_weights, strict=True):
        assert relative_error(weights[0], w0) > 0.01
    assert (state.grads, state.decay_sum, state.pending) == (None, None, None)


# Within the window and the first chunk: full attention + alpha * a static map


def base_attention(layer, family: str, index: int):
    """mlx-lm's own attention with the weights of a hybrid layer."""
    arch = importlib.import_module(f"mlx_lm.models.{family}")
    base = {**TINY_BASE, "model_type": family}
    attention = arch.Model(arch.ModelArgs.from_dict(base)).layers[index].self_attn
    own = attention.parameters()
    attention.update({name: layer.parameters()[name] for name in own})
    return attention


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_short_input_gets_full_attention_and_a_static_map(family, index):
    model = tiny_model(family)
    layer = model.layers[index].self_attn
    u = random_input(2, CHUNK)

    actual = layer(u, cache=model.make_cache()[index])

    attention = base_attention(layer, family, index)(u, mask="causal")
    static = oracle_memory(layer.memory, u)  # the first chunk is read with W0
    added = np.asarray(layer.alpha, np.float64) * static
    expected = np.asarray(attention, np.float64) + added
    assert_close("hybrid layer", actual, expected, 1e-6)
    assert relative_error(attention, expected) > 0.05, "the memory adds nothing"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_with_alpha_zero_the_layer_is_full_attention_exactly(family):
    layer = tiny_model(family, trained=False).layers[0].self_attn
    u = random_input(1, CHUNK)
    actual = layer(u, cache=tiny_model(family).make_cache()[0])
    assert mx.array_equal(actual, base_attention(layer, family, 0)(u, mask="causal"))


# Padding and batches


@pytest.mark.parametrize("length, padding", [(20, 5), (CHUNK, 1), (70, 60), (100, 200)])
def test_right_padding_does_not_change_the_tokens_before_it(model, length, padding):
    tokens = random_tokens(2, length + padding)
    alone, _ = feed(model, tokens[:, :length], [length])
    padded, _ = feed(model, tokens, [length + padding])
    assert_close("logits", padded[:, :length], alone, 1e-6)


def test_rows_of_a_batch_are_independent(model):
    tokens = random_tokens(3, 5 * CHUNK + 9)
    length = tokens.shape[1]
    together, batch = feed(model, tokens, [length])
    for row in range(3):
        alone, cache = feed(model, tokens[row : row + 1], [length])
        assert_close(f"logits of row {row}", together[row], alone[0], 1e-6)
        for layer, (a, b) in enumerate(zip(batch, cache, strict=True)):
            for part, (x, y) in enumerate(zip(a[1].cache, b[1].cache, strict=True)):
                where = f"array {part} of layer {layer}, row {row}"
                assert_close(where, x[row], y[0], 1e-6)


def test_a_state_does_not_offer_to_be_batched(model):
    cache = model.make_cache()
    assert all(type(c).__name__ == "CacheList" for c in cache)
    assert not any(hasattr(c, "merge") for c in cache)


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3, 4], [5, 6]]])
def test_batched_generation_is_refused(model, prompts):
    """Rows of different lengths would leave the chunk grid at different tokens."""
    tokenizer = SimpleNamespace(eos_token_ids=[0], decode=str)
    with pytest.raises(ValueError, match="batching"):
        mlx_lm.batch_generate(model, tokenizer, prompts, max_tokens=2)
    generator = BatchGenerator(model, max_tokens=2)
    generator.insert(prompts)
    with pytest.raises(ValueError, match="batching"):
        generator.next()


# Rounding does not build up


def assert_types(state: MemoryState, dtype: mx.Dtype) -> None:
    """What the model computes with is of its type, all else in float32."""
    assert state.conv_state.dtype == dtype
    others = state.arrays()[1:]
    assert {x.dtype for x in others if x is not None} == {mx.float32}


def test_a_new_state_is_float32_whatever_the_model_is(memory):
    assert_types(memory.initial_state(2, mx.bfloat16), mx.bfloat16)


def cast(model: Model, dtype: mx.Dtype) -> Model:
    """As a converter does it, with the model's own rule for what stays float32."""
    keep = model.cast_predicate
    model.update(
        tree_map_with_path(
            lambda path, x: x.astype(dtype) if keep(path) else x, model.parameters()
        )
    )
    return model


def test_initial_norms_are_computed_once_for_the_same_weights():
    memory = Memory(DIMS, AllMemConfig(**SIZES))
    norms = memory.initial_norms
    assert memory.initial_norms is norms
    memory.update({"w0_gate": 2 * memory.w0_gate})
    assert_close("gate", memory.initial_norms[0], 2 * norms[0], 1e-6)
    assert not any(name.startswith("_") for name in memory.parameters())


def test_bfloat16_does_not_drift_from_float32_over_64_updates():
    """Both have the same weights, rounded to bfloat16; only the arithmetic differs."""
    half = cast(tiny_model(), mx.bfloat16)
    full = cast(tiny_model(), mx.bfloat16)
    full.update(
        tree_map_with_path(lambda _, x: x.astype(mx.float32), full.parameters())
    )
    length = 65 * CHUNK
    tokens = random_tokens(1, length)
    expected, _ = feed(full, tokens, [length])
    actual, cache = feed(half, tokens, [length])

    assert actual.dtype == mx.bfloat16
    assert_types(state_of(cache[0][1]), mx.bfloat16)
    actual = actual.astype(mx.float32)
    assert mx.all(mx.isfinite(actual))
    first, second = slice(CHUNK, 33 * CHUNK), slice(33 * CHUNK, length)
    early = relative_error(actual[:, first], expected[:, first])
    late = relative_error(actual[:, second], expected[:, second])
    assert max(early, late) < 5e-2, (early, late)
    assert late < 2 * early, (early, late)


# Sizes and settings

QWEN3 = {
    # name: hidden_size, parameters of the base, of its memories, their share of all
    "0.6B": (1024, 596_049_920, 65.58e6, 0.0991),
    "1.7B": (2048, 1_720_574_976, 125.48e6, 0.0680),
}


@pytest.mark.parametrize("name", QWEN3)
def test_memories_of_the_papers_models_have_the_papers_size(name):
    """Spec 1.4: 66M or 9.9 % of Qwen3-0.6B-AllMem, 126M or 6.8 % of 1.7B."""
    dims, base, added, share = QWEN3[name]
    config = AllMemConfig.for_base(
        {"hidden_size": dims, "num_attention_heads": 16, "num_key_value_heads": 8}
    )
    memory = Memory(dims, config)
    alpha = dims
    count = sum(x.size for _, x in tree_flatten(memory.parameters())) + alpha
    assert 28 * count == pytest.approx(added, abs=0.01e6)
    assert 28 * count / (base + 28 * count) == pytest.approx(share, abs=0.5e-4)


def test_a_layer_has_one_memory_and_one_alpha(model):
    names = {
        name
        for name, _ in tree_flatten(model.layers[0].self_attn.parameters())
        if name.startswith(("memory.", "alpha"))
    }
    own = {
        f"memory.{name}"
        for name, _ in tree_flatten(Memory(8, AllMemConfig(**SIZES)).parameters())
    }
    assert names == own | {"alpha"}


@pytest.mark.parametrize(
    "hidden_size, heads, kv_heads, expected",
    [
        pytest.param(576, 9, 3, 3, id="SmolLM2-135M"),
        pytest.param(640, 4, 1, 4, id="Gemma-3-270M"),
        pytest.param(1024, 16, 8, 8, id="Qwen3-0.6B"),
        pytest.param(512, 8, None, 8, id="without-kv-heads"),
    ],
)
def test_heads_follow_the_base(hidden_size, heads, kv_heads, expected):
    base = {"hidden_size": hidden_size, "num_attention_heads": heads}
    if kv_heads:
        base["num_key_value_heads"] = kv_heads
    config = AllMemConfig.for_base(base, window=99)
    assert config == AllMemConfig(expected, head_dim=64, hidden_dim=128, window=99)


@pytest.mark.parametrize(
    "name, value",
    [
        ("window", 0),
        ("window", -1),
        ("window", 2048.0),
        ("window", True),
        ("window", "2048"),
        ("window", None),
        ("chunk", 0),
        ("chunk", True),
        ("fold", 0),
        ("fold", 48),  # does not divide the chunk of 512
        ("fold", 1024),
        ("sinks", -1),
        ("sinks", 4.0),
        ("heads", 0),
        ("head_dim", 0),
        ("hidden_dim", 0),
        ("conv_kernel", 0),
        ("positions", "x"),
        ("positions", None),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", "0.2"),
        ("max_update_norm", float("inf")),
        ("max_update_norm", None),
        ("layers", 6),
        ("layers", []),
        ("layers", [0, "1"]),
        ("layers", [True]),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name, value):
    with pytest.raises(SettingError) as refused:
        AllMemConfig.from_dict({**SIZES, name: value})
    message = str(refused.value)
    assert name in message and "\n" not in message


@pytest.mark.parametrize("layers", [[4], [-5], [1, 1], [3, -1]], ids=str)
def test_layers_that_are_not_there_or_there_twice_are_refused(layers):
    with pytest.raises(SettingError, match="^layers is .* another one of the 4 that"):
        AllMemConfig(**SIZES, layers=layers).memory_layers([1, 3, 5, 7])


def test_layers_count_from_either_end_of_those_that_do_not_slide():
    config = AllMemConfig(**SIZES, layers=[0, -1, -2])
    assert config.memory_layers([1, 3, 5, 7]) == [1, 5, 7]
    assert AllMemConfig(**SIZES).memory_layers([1, 3]) == [1, 3]


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_size_is_refused_by_name(name):
    block = {key: value for key, value in SIZES.items() if key != name}
    with pytest.raises(SettingError, match=f"^allmem setting {name} is missing$"):
        AllMemConfig.from_dict(block)


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(SettingError, match="^unknown allmem setting windw$"):
        AllMemConfig.from_dict({**SIZES, "windw": 4096})


def test_a_setting_at_its_bound_is_accepted():
    block = {"window": 1, "sinks": 0, "chunk": 1, "fold": 1, "conv_kernel": 1}
    config = AllMemConfig.from_dict(
        {"heads": 1, "head_dim": 1, "hidden_dim": 1, **block, "learning_rate": 1}
    )
    assert (config.window, config.sinks, config.positions) == (1, 0, "bounded")
