"""Every family: a checkpoint made by transformers, converted, against transformers."""

from dataclasses import replace
from functools import cached_property

import family_table
import mlx.core as mx
import numpy as np
import pytest
from family_cases import (
    CASES,
    FULL,
    SLIDING,
    save_checkpoint,
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
from mlx.utils import tree_flatten
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from allmem_mlx import load, ring, state
from allmem_mlx.attention import WindowAttention
from allmem_mlx.cache import attention_caches, recurrent_caches
from allmem_mlx.convert import convert
from allmem_mlx.errors import SettingError
from allmem_mlx.families import family_of
from allmem_mlx.memory.layer import Memory
from allmem_mlx.model import HybridAttention, is_memory
from allmem_mlx.session import Session
from allmem_mlx.variants import base_model

LENGTH = 136  # many times the native windows of 24, and several blocks
CUTS = [70, 1, 1, 22, 1, 1, 40]
CHUNK = 8  # a quarter of a block of 32, which is more than the native windows
WINDOW, SINKS = 32, 4  # of a hybrid that tokens leave; the base allows it
TOLERANCE = 1e-5
# One case for each way in which a layer gets its keys, and for what is beside it.
MIXED = ["olmo3", "gpt_oss", "gemma4_text"]  # global layers and sliding ones
KINDS = [*MIXED, "llama, yarn", "mistral, sliding", "qwen3_moe"]
KINDS += ["qwen3_5", "granitemoehybrid, dense, rotated", "falcon_h1", "lfm2"]


class Case:
    """A checkpoint, what it is in transformers, and its hybrid."""

    def __init__(self, folder, name: str):
        self.name, self.folder, self.new = name, folder / "base", folder / "new"
        save_checkpoint(self.folder, name)
        sizes = {"window": WINDOW, "sinks": SINKS, "chunk": CHUNK, "fold": CHUNK}
        convert(self.folder, self.new, head_dim=16, hidden_dim=32, **sizes)

    @cached_property
    def original(self):
        return transformers_model(self.folder)

    def hybrid(self, chunk=CHUNK, **options):
        settings = {"chunk": chunk, "fold": chunk, **options}
        return load(self.new, model_config=settings)[0]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A case of each kind."""
    return Case(tmp_path_factory.mktemp("kind"), request.param)


def slides_everywhere(name: str) -> bool:
    return name.endswith(", sliding")


def converted(folder, new, chunk=CHUNK, **options):
    convert(folder, new, **options)
    return load(new, model_config={"chunk": chunk, "fold": chunk})[0]


def test_the_logits_are_those_of_transformers(case):
    """At alpha = 0: inside the window, and beyond the windows of layers that slide in
    the base; in cuts and token by token."""
    window = {"window": 256, "sinks": 4}  # nothing leaves it
    if slides_everywhere(case.name):
        window = {"window": settings(case.name)[1]["sliding_window"], "sinks": 0}
    tokens = random_tokens(1, LENGTH)
    actual, _ = feed(case.hybrid(chunk=32, **window), tokens, CUTS)
    expected = transformers_logits(case.original, tokens)
    assert_close("logits", actual, expected, TOLERANCE)


def beyond(case, sinks: int, wrong=None, **options) -> float:
    """How far the logits of a hybrid, many times its window, are from those of
    transformers' own model over the keys that it should see.

    Args:
        wrong (dict): settings that the hybrid has instead of those it should have.
    """
    from windowed_attention import windowed_logits

    options = {"window": WINDOW, "sinks": sinks, **options, **(wrong or {})}
    tokens = random_tokens(1, LENGTH)
    actual, _ = feed(case.hybrid(**options), tokens, CUTS)
    expected = windowed_logits(case.original, tokens, WINDOW, sinks)
    return relative_error(actual, expected)


@pytest.fixture
def absolute(monkeypatch):
    """Positions by their place in the document, which not every family allows, but
    these do not reach its bound."""
    monkeypatch.setattr("allmem_mlx.model.reach", lambda config: None)
    return {"positions": "absolute"}


def test_beyond_the_window_it_sees_window_and_sinks(case, absolute):
    """In their places, as they are in transformers."""
    assert beyond(case, SINKS, **absolute) <= TOLERANCE


def test_turned_keys_are_as_if_rotated_by_their_places(case):
    """Attention sees differences of positions only. So without sinks, whose places are
    their own, bounded positions change nothing."""
    assert beyond(case, sinks=0, positions="bounded") <= TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [{"window": WINDOW - 1}, {"window": WINDOW + 1}, {"sinks": SINKS - 1}],
    ids=str,
)
def test_a_key_too_many_or_too_few_is_noticed(kind, wrong, absolute):
    assert beyond(kind, SINKS, wrong, **absolute) > 100 * TOLERANCE


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("kind", MIXED, indirect=True)
def test_a_key_too_many_or_too_few_of_a_sliding_layer_is_noticed(
    kind, change, monkeypatch
):
    make = WindowAttention.__init__

    def changed(self, base, config, family):
        if config.window != WINDOW:
            config = replace(config, window=config.window + change)
        make(self, base, config, family)

    monkeypatch.setattr(WindowAttention, "__init__", changed)
    assert beyond(kind, sinks=0, positions="bounded") > 100 * TOLERANCE


def test_a_turn_too_far_is_noticed(kind, monkeypatch):
    turn = WindowAttention.turn
    monkeypatch.setattr(
        WindowAttention, "turn", lambda self, keys, by: turn(self, keys, by + 1)
    )
    assert beyond(kind, sinks=0, positions="bounded") > 100 * TOLERANCE


def test_which_layers_become_hybrids(case):
    """As transformers says what each layer is."""
    model, config = case.hybrid(), case.original.config
    types = getattr(config, "layer_types", None) or getattr(
        config, "layers_block_type", [FULL] * len(model.layers)
    )
    borrowing = len(types) - getattr(config, "num_kv_shared_layers", 0)
    for i, kind in enumerate(types):
        attention = model.attentions.get(i)
        if kind not in (FULL, SLIDING, "attention", "chunked_attention", "hybrid"):
            assert attention is None
            continue
        slides = kind == SLIDING and not slides_everywhere(case.name)
        has_memory = i < borrowing and not slides
        expected = HybridAttention if has_memory else WindowAttention
        assert isinstance(attention, expected)
        assert ("memory" in attention) == has_memory
        assert attention.borrows == (i >= borrowing)
    cache, family = model.make_cache(), family_of(CASES[case.name][0])
    owners = [x for x in model.attentions.values() if not x.borrows]
    assert len(attention_caches(cache)) == len(owners)
    assert bool(recurrent_caches(cache)) == (family.recurrent is not None)


def noting(kind: type, ends: list[int]):
    """Notes where the keys end that a ring is given."""
    fetch = kind.update_and_fetch

    def noted(self, keys, values):
        ends.append(int(np.asarray(self.offset).max()) + keys.shape[2])
        return fetch(self, keys, values)

    return noted


def test_no_layer_rotates_beyond_window_sinks_and_chunk(case, monkeypatch):
    model = case.hybrid(window=WINDOW, sinks=SINKS)
    ends = []
    for kind in (ring.Past, ring.Tiles):
        monkeypatch.setattr(kind, "update_and_fetch", noting(kind, ends))
    feed(model, random_tokens(1, LENGTH), [LENGTH])
    assert WINDOW < max(ends) <= SINKS + WINDOW + CHUNK


def test_inside_every_window_it_is_mlx_lm_s_own_model(case):
    model, tokens = case.hybrid(chunk=20, window=WINDOW), random_tokens(1, 20)
    base = base_model(model)
    expected = base(tokens, cache=make_prompt_cache(base))
    assert mx.array_equal(model(tokens), expected)


@pytest.mark.slow
def test_cuts_do_not_matter_and_a_state_is_a_file(case, tmp_path):
    """With an active memory, beyond every window."""
    model = case.hybrid(window=WINDOW, sinks=SINKS)
    mx.random.seed(1)
    activate_memory(model)
    mx.eval(model.parameters())
    tokens = random_tokens(1, 120)
    expected, cache = feed(model, tokens, [120])
    actual, cut = feed(model, tokens, random_cuts(120, seed=1))
    assert_close("logits", actual, expected, TOLERANCE)
    assert_same_state(cut, cache, 1e-4)

    save_prompt_cache(str(tmp_path / "stock.safetensors"), cut, {})
    stock = load_prompt_cache(str(tmp_path / "stock.safetensors"))
    more = random_tokens(1, 30, seed=2)
    expected, _ = feed(model, more, [30], cut)
    assert mx.array_equal(feed(model, more, [30], stock)[0], expected)


def test_the_memory_gets_a_normed_input(case, monkeypatch):
    """``AllMem(RMSNorm(x))``, also where the base norms what its attention returns."""
    model, tokens = case.hybrid(window=WINDOW), random_tokens(1, 10)
    activate_memory(model)
    inputs, recall = [], Memory.__call__

    def noted(self, u, *args):
        inputs.append(u)
        return recall(self, u, *args)

    first = model.layers[model.global_layers[0]]
    call = type(first).__call__

    def scaled(self, x, *args, **options):
        x = 100 * x if self is first and inputs else x
        return call(self, x, *args, **options)

    monkeypatch.setattr(Memory, "__call__", noted)
    monkeypatch.setattr(type(first), "__call__", scaled)
    model(tokens), model(tokens)
    once = len(inputs) // 2
    assert_close("input", inputs[once], inputs[0], 1e-3)


@pytest.mark.parametrize("name", ["dots1", "ernie4_5_moe", "glm4_moe"])
def test_what_chooses_experts_keeps_its_precision(tmp_path, name):
    """A router that transformers computes in float32, of a model in another type."""
    folder = save_checkpoint(tmp_path / "base", name)
    model = converted(folder, tmp_path / "new", dtype="bfloat16")
    exact = ("mlp.gate.weight", "e_score_correction_bias", "expert_bias")
    parameters = dict(tree_flatten(model.parameters()))
    routers = {x for x in parameters if x.endswith(exact)}
    assert len(routers) == 4
    for path, x in parameters.items():
        if not is_memory(path):
            assert x.dtype == (mx.float32 if path in routers else mx.bfloat16), path


def test_experts_without_the_bias_that_mlx_lm_leaves_out(tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "base", "ernie4_5_moe")
    file = folder / "model.safetensors"
    weights = mx.load(str(file))
    bias = [name for name in weights if name.endswith("e_score_correction_bias")]
    mx.save_safetensors(str(file), {n: weights[n] for n in weights if n not in bias})
    model = converted(folder, tmp_path / "new", window=256)
    assert "bias of the experts was left out by mlx-lm" in capsys.readouterr().err
    zeros = {name: mx.zeros_like(weights[name]) for name in bias}
    mx.save_safetensors(str(file), {**weights, **zeros}, {"format": "pt"})
    tokens = random_tokens(1, 40)
    expected = transformers_logits(transformers_model(folder), tokens)
    assert_close("logits", model(tokens), expected, TOLERANCE)


def test_a_window_beyond_that_of_the_base_is_refused(tmp_path):
    """Where all layers slide, the base was never trained to see more."""
    folder = save_checkpoint(tmp_path / "base", "mistral, sliding")
    with pytest.raises(SettingError, match="window is 49.* 48 tokens"):
        convert(folder, tmp_path / "new", window=49)
    convert(folder, tmp_path / "new")  # by default, what the base sees
    assert load(tmp_path / "new")[0].allmem.window == 48
    with pytest.raises(SettingError, match="window is 49.* 48 tokens"):
        load(tmp_path / "new", model_config={"window": 49})


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
