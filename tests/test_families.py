"""Every family: a checkpoint made by transformers, converted, against transformers."""

import inspect

import family_table
import mlx.core as mx
import numpy as np
import pytest
from family_cases import (
    CASES,
    FULL,
    SLIDING,
    save_checkpoint,
    save_gemma3_with_vision,
    settings,
)
from helpers import (
    activate_memory,
    assert_close,
    assert_same_state,
    feed,
    random_cuts,
    random_tokens,
    relative_error,
    state_arrays,
    transformers_logits,
    transformers_model,
)
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from allmem_mlx import load, ring, state
from allmem_mlx.attention import WindowAttention
from allmem_mlx.cache import attention_caches, has_memory, recurrent_caches
from allmem_mlx.convert import convert
from allmem_mlx.errors import SettingError
from allmem_mlx.families import family_of
from allmem_mlx.memory.layer import Memory
from allmem_mlx.model import HybridAttention
from allmem_mlx.session import Session
from allmem_mlx.variants import base_model

# A layer that reads the keys and values of another.
BORROWING = "borrowing"
LENGTH = 200  # many times the native windows of 24, and several blocks
CUTS = [70, 1, 1, 40, *[1] * 8, 80]
CHUNK = 8  # a quarter of a block of 32, which is more than the native windows
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A checkpoint and what kind it is."""
    folder = tmp_path_factory.mktemp("family") / "base"
    return request.param, save_checkpoint(folder, request.param)


def slides_everywhere(name: str) -> bool:
    return name.endswith(", sliding")


def small_window(name: str) -> int:
    """A window that 200 tokens leave, and that the base allows."""
    return settings(name)[1]["sliding_window"] if slides_everywhere(name) else 32


def converted(folder, new, chunk=CHUNK, **options):
    grid = {"chunk": chunk, "fold": chunk}
    convert(folder, new, **{"sinks": 4, **grid, **options})
    return load(new)[0]


def test_the_logits_are_those_of_transformers(case, tmp_path):
    """At alpha = 0: inside the window, and beyond the windows of layers that slide in
    the base; in cuts and token by token."""
    name, folder = case
    window = {"window": 256, "sinks": 4}  # nothing leaves it
    if slides_everywhere(name):
        window = {"window": small_window(name), "sinks": 0}
    model = converted(folder, tmp_path / "new", **window)
    tokens = random_tokens(1, LENGTH)
    actual, _ = feed(model, tokens, CUTS)
    assert_close(
        "logits",
        actual,
        transformers_logits(transformers_model(folder), tokens),
        TOLERANCE,
    )


def test_which_layers_become_hybrids(case, tmp_path):
    name, folder = case
    model = converted(folder, tmp_path / "new", window=small_window(name))
    kinds = kinds_of_layers(name, len(model.layers))
    for i, kind in enumerate(kinds):
        attention = model.attentions.get(i, {})
        assert isinstance(attention, HybridAttention) == (kind == FULL)
        assert isinstance(attention, WindowAttention) == (
            kind in (FULL, SLIDING, BORROWING)
        )
        assert ("memory" in attention) == (kind == FULL)
    own = [kind for kind in kinds if kind in (FULL, SLIDING)]
    cache = model.make_cache()
    assert len(attention_caches(cache)) == len(own)
    assert bool(recurrent_caches(cache)) == (
        family_of(CASES[name][0]).recurrent is not None
    )


def kinds_of_layers(name: str, layers: int) -> list[str]:
    """What each layer of a case is in the hybrid: ``FULL`` for one with a memory."""
    config = settings(name)[1]
    kinds = config.get("layer_types") or config.get("layers_block_type")
    kinds = list(kinds or [FULL] * layers)
    if name == "gemma2":  # every other one, by default
        kinds = [SLIDING, FULL]
    if name == "qwen2, some sliding":
        kinds = [FULL, SLIDING]
    if name == "jamba":
        kinds = ["mamba", FULL] * 2
    for i in range(layers - config.get("num_kv_shared_layers", 0), layers):
        kinds[i] = BORROWING
    return kinds


def test_turned_keys_are_as_if_rotated_by_their_places(case, tmp_path, monkeypatch):
    """Attention sees differences of positions only. So without sinks, whose places are
    their own, bounded positions change nothing."""
    # Absolute ones are not for every family, but these do not reach its bound.
    monkeypatch.setattr("allmem_mlx.model.reach", lambda config: None)
    name, folder = case
    tokens, window = random_tokens(1, LENGTH), small_window(name)
    logits = [
        feed(
            converted(folder, tmp_path / p, window=window, sinks=0, positions=p),
            tokens,
            CUTS,
        )[0]
        for p in ("bounded", "absolute")
    ]
    assert_close("logits", logits[0], logits[1], TOLERANCE)


def noting(kind: type, ends: list[int]):
    """Notes where the keys end that a ring is given."""
    fetch = kind.update_and_fetch

    def noted(self, keys, values):
        ends.append(int(np.asarray(self.offset).max()) + keys.shape[2])
        return fetch(self, keys, values)

    return noted


def test_no_layer_rotates_beyond_window_sinks_and_chunk(case, tmp_path, monkeypatch):
    name, folder = case
    window = small_window(name)
    model = converted(folder, tmp_path / "new", window=window, sinks=4)
    ends = []
    for kind in (ring.Past, ring.Tiles):
        monkeypatch.setattr(kind, "update_and_fetch", noting(kind, ends))
    feed(model, random_tokens(1, 500), [500])
    assert window < max(ends) <= 4 + window + CHUNK


def test_inside_every_window_it_is_mlx_lm_s_own_model(case, tmp_path):
    name, folder = case
    model = converted(folder, tmp_path / "new", chunk=20, window=small_window(name))
    tokens = random_tokens(1, 20)
    base = base_model(model)
    expected = base(tokens, cache=make_prompt_cache(base))
    assert mx.array_equal(model(tokens), expected)


@pytest.mark.slow
def test_cuts_do_not_matter_and_a_state_is_a_file(case, tmp_path):
    """With an active memory, beyond every window."""
    name, folder = case
    model = converted(folder, tmp_path / "new", window=small_window(name), sinks=4)
    mx.random.seed(1)
    activate_memory(model)
    mx.eval(model.parameters())
    tokens = random_tokens(1, 2 * LENGTH)
    expected, cache = feed(model, tokens, [2 * LENGTH])
    actual, cut = feed(model, tokens, random_cuts(2 * LENGTH, seed=1))
    assert_close("logits", actual, expected, TOLERANCE)
    assert_same_state(cut, cache, 1e-4)

    save_prompt_cache(str(tmp_path / "stock.safetensors"), cut, {})
    stock = load_prompt_cache(str(tmp_path / "stock.safetensors"))
    more = random_tokens(1, 100, seed=2)
    expected, _ = feed(model, more, [100], cut)
    assert mx.array_equal(feed(model, more, [100], stock)[0], expected)


def test_the_memory_gets_a_normed_input(case, tmp_path, monkeypatch):
    """``AllMem(RMSNorm(x))``, also where the base norms what its attention returns."""
    name, folder = case
    model = converted(folder, tmp_path / "new", window=small_window(name))
    activate_memory(model)
    inputs, call = [], Memory.__call__

    def noted(self, u, *args):
        inputs.append(u)
        return call(self, u, *args)

    monkeypatch.setattr(Memory, "__call__", noted)
    index = next(i for i, x in model.attentions.items() if "memory" in x)
    x = mx.random.normal((1, 10, model.args.hidden_size), key=mx.random.key(0))
    for scale in (1, 100):
        call_layer(model, index, scale * x)
    assert_close("input", inputs[1], inputs[0], 1e-3)


def call_layer(model, index, x):
    """Calls a layer with a stream, and with what else its model file hands it."""
    cache = next(c for c in model.make_cache() if has_memory([c]))
    layer = model.layers[index]
    if "Gemma3n" in type(layer).__name__:
        x = mx.broadcast_to(x, (model.args.altup_num_inputs, *x.shape))
    first, *others = list(inspect.signature(type(layer).__call__).parameters)[1:]
    given = {"cache": cache, "per_layer_input": mx.zeros((1, 10, 8))}
    layer(x, **{name: given.get(name) for name in others})


def test_a_window_beyond_that_of_the_base_is_refused(tmp_path):
    """Where all layers slide, the base was never trained to see more."""
    folder = save_checkpoint(tmp_path / "base", "mistral, sliding")
    with pytest.raises(SettingError, match="window is 49.* 48 tokens"):
        convert(folder, tmp_path / "new", window=49)
    convert(folder, tmp_path / "new")  # by default, what the base sees
    assert load(tmp_path / "new")[0].allmem.window == 48
    with pytest.raises(SettingError, match="window is 49.* 48 tokens"):
        load(tmp_path / "new", model_config={"window": 49})


def test_gemma_3_with_a_vision_tower(tmp_path):
    """The language model alone is converted."""
    folder, kind = save_gemma3_with_vision(tmp_path / "base")
    tokens = random_tokens(1, LENGTH, vocab=90)  # without the tokens of images
    model = converted(folder, tmp_path / "new", window=256)
    expected = transformers_logits(transformers_model(folder, kind), tokens)
    assert_close("logits", feed(model, tokens, CUTS)[0], expected, TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_of_a_model_with_sliding_layers(tmp_path, dtype):
    """Saved, opened, forked: bit for bit, and without memory where there is none."""
    folder = save_checkpoint(tmp_path / "base", "gemma3_text")
    model = converted(folder, tmp_path / "new", window=32, sinks=4, dtype=dtype)
    mx.random.seed(1)
    activate_memory(model)
    session = Session(model, load(tmp_path / "new")[1])
    list(session.read([random_tokens(1, 300)[0].tolist()]))
    state.save(session.state, tmp_path / "file", model)
    names = session.state.arrays
    assert "layers.2.memory.tail" in names
    assert not any(name.startswith("layers.0.memory") for name in names)

    opened, forked = state.load(tmp_path / "file", model), session.state.fork()
    more, results = random_tokens(1, 70, seed=2), []
    for each in (session.state, opened, forked):
        logits, cache = feed(model, more, [70], each.cache)
        results.append((logits, state_arrays(cache)))
    for logits, arrays in results[1:]:
        assert mx.array_equal(logits, results[0][0])
        assert all(mx.array_equal(x, results[0][1][n]) for n, x in arrays.items())
    remembered, fresh = (x.astype(mx.float32) for x in (results[0][0], model(more)))
    assert relative_error(remembered, fresh) > 1e-3


def test_the_table_in_the_docs_is_up_to_date():
    text = family_table.DOCS.read_text()
    assert text == family_table.updated(text), "run `make families`"
