"""Wide blocks: what goes through a layer at once does not change what is read."""

import dataclasses
import random
from collections import Counter
from functools import partial
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import (
    activate_memory,
    active_folder,
    assert_close,
    assert_same_state,
    feed,
    random_cuts,
    random_tokens,
    slow_beyond,
    tiny_args,
    tiny_base_folder,
    tiny_model,
)
from launches import count_step
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache
from model_launches import launches
from processes import run

from allmem_mlx import load, ring
from allmem_mlx import state as states
from allmem_mlx.cache import has_memory
from allmem_mlx.config import BLOCK, AllMemConfig
from allmem_mlx.convert import convert
from allmem_mlx.distillation.mlx.student import set_view
from allmem_mlx.errors import AllMemError
from allmem_mlx.memory import kernels
from allmem_mlx.model import Model
from allmem_mlx.session import Session
from allmem_mlx.state import State
from allmem_mlx.variants import window_model

TOLERANCE = 1e-5
STATE_TOLERANCE = 1e-4  # see test_splits.py
LENGTH = 500
CUTS = (1, 2, 7, 8, 15, 16, 17, 31, 64, 65, 100, 128, 300)

# Blocks of several chunks, everywhere but in the last. Sinks leave the window after 70
# to 130 tokens; a window is no whole number of chunks, or smaller than the sinks.
WIDE = {
    "bounded": {"chunk": 16, "window": 64, "sinks": 4},
    "ragged-window": {"chunk": 16, "window": 75, "sinks": 5},
    "no-sinks": {"chunk": 8, "window": 64, "sinks": 0},
    "many-sinks": {"chunk": 16, "window": 48, "sinks": 80},
    "absolute": {"chunk": 16, "window": 64, "sinks": 4, "positions": "absolute"},
    "chunk-2": {"chunk": 2, "window": 24, "sinks": 3, "fold": 1},
    "block-is-chunk": {"chunk": 32, "window": 48, "sinks": 4},
    "down": {"chunk": 16, "window": 64, "sinks": 4, "updates": "down"},
}


def wide_model(case: str, family: str = "qwen3") -> Model:
    return tiny_model(family, **{"fold": 8, **WIDE[case]})


def sliding_model() -> Model:
    """Layers that slide, with a window smaller than a block, beside others."""
    args = tiny_args(chunk=16, window=64, sinks=4, fold=8)
    args.base["layer_types"] = ["sliding_attention", "full_attention"]
    args.base["sliding_window"] = 20
    mx.random.seed(0)
    model = Model(args)
    activate_memory(model)
    mx.eval(model.parameters())
    return model


class Wide:
    """A model, and what it makes of tokens that come all at once."""

    def __init__(self, model: Model, batch: int):
        self.model, self.tokens = model, random_tokens(batch, LENGTH)
        self.logits, self.cache = feed(model, self.tokens, [LENGTH])

    def assert_same(self, cuts: list[int]) -> None:
        logits, cache = feed(self.model, self.tokens, cuts)
        assert_close("logits", logits, self.logits, TOLERANCE)
        assert_same_state(cache, self.cache, STATE_TOLERANCE)


@pytest.fixture(scope="module", params=[*WIDE, "sliding", "llama-B3"])
def wide(request) -> Wide:
    if request.param == "sliding":
        return Wide(sliding_model(), 1)
    if request.param == "llama-B3":
        return Wide(wide_model("bounded", "llama"), 3)
    return Wide(wide_model(request.param), 2)


def in_chunks(model: Model, length: int) -> list[int]:
    chunk = model.allmem.chunk
    return [min(chunk, length - start) for start in range(0, length, chunk)]


def test_read_in_blocks_and_chunk_by_chunk(wide):
    wide.assert_same(in_chunks(wide.model, LENGTH))


@pytest.mark.slow
def test_read_in_blocks_and_token_by_token(wide):
    wide.assert_same([1] * LENGTH)


def test_chunks_of_one_token():
    model = tiny_model(chunk=1, window=24, sinks=3, fold=1)
    tokens = random_tokens(2, 150)
    at_once = feed(model, tokens, [150])
    one_by_one = feed(model, tokens, [1] * 150)
    assert_close("logits", at_once[0], one_by_one[0], TOLERANCE)


@pytest.mark.parametrize("seed", slow_beyond(2, range(6)))
def test_read_in_blocks_and_in_any_cuts(wide, seed):
    wide.assert_same(random_cuts(LENGTH, seed, CUTS))


def test_multiples_of_a_block_are_the_same_to_the_bit(wide):
    block = wide.model.allmem.block
    cuts = [2 * block, 3 * block, block]
    logits, cache = feed(wide.model, wide.tokens, [*cuts, LENGTH - sum(cuts)])
    assert mx.array_equal(logits, wide.logits)
    assert_same_state(cache, wide.cache, 0)


def test_where_a_block_is_a_chunk_nothing_changes():
    model = wide_model("block-is-chunk")
    assert model.allmem.block == model.allmem.chunk
    tokens = random_tokens(2, LENGTH)
    at_once = feed(model, tokens, [LENGTH])
    by_chunk = feed(model, tokens, in_chunks(model, LENGTH))
    assert mx.array_equal(at_once[0], by_chunk[0])
    assert_same_state(at_once[1], by_chunk[1], 0)


@pytest.mark.parametrize("positions", ["bounded", "absolute"])
def test_positions_are_bounded(monkeypatch, positions):
    model = tiny_model(chunk=16, window=64, sinks=4, fold=8, positions=positions)
    c, largest = model.allmem, 0
    rope = type(model.layers[0].self_attn.rope)
    call = rope.__call__

    def noted(self, x, offset=0):
        nonlocal largest
        largest = max(largest, mx.max(mx.array(offset)).item() + x.shape[-2] - 1)
        return call(self, x, offset=offset)

    monkeypatch.setattr(rope, "__call__", noted)
    feed(model, random_tokens(1, LENGTH), [LENGTH])
    if positions == "bounded":
        assert largest == c.sinks + c.window + c.chunk - 1
    else:
        assert largest == LENGTH - 1


class TestCuts:
    """Of the absolute grid."""

    def config(self, **settings) -> AllMemConfig:
        return AllMemConfig(1, 8, 8, fold=1, **settings)

    @pytest.mark.parametrize(
        "chunk, window, block",
        [
            pytest.param(64, 512, BLOCK, id="several"),
            pytest.param(64, 2048, BLOCK, id="large-window"),
            pytest.param(64, 200, 192, id="no-more-than-the-window"),
            pytest.param(96, 512, 480, id="whole-chunks"),
            pytest.param(512, 2048, 512, id="one"),
            pytest.param(2048, 4096, 2048, id="large-chunk"),
            pytest.param(64, 40, 64, id="chunk-beyond-the-window"),
        ],
    )
    def test_a_block_is_whole_chunks(self, chunk, window, block):
        assert self.config(chunk=chunk, window=window).block == block

    def test_blocks_then_chunks(self):
        config = self.config(chunk=4, window=12)
        assert list(config.cuts(0, 30)) == [12, 12, 4, 2]
        assert list(config.cuts(0, 24)) == [12, 12]
        assert list(config.cuts(5, 20)) == [3, 4, 12, 1]
        assert list(config.cuts(12, 12)) == [12]
        assert list(config.cuts(12, 0)) == []

    @pytest.mark.parametrize("seed", range(5))
    def test_nothing_straddles_and_nothing_is_lost(self, seed):
        rng = np.random.default_rng(seed)
        config = self.config(chunk=int(rng.integers(1, 9)), window=40)
        token, tokens = map(int, rng.integers(0, 300, 2))
        sizes = list(config.cuts(token, tokens))
        assert sum(sizes) == tokens and all(sizes)
        for size in sizes:
            if size > config.chunk:
                assert (token % config.block, size) == (0, config.block)
            else:
                assert token // config.chunk == (token + size - 1) // config.chunk
            token += size


class TestOff:
    """A memory whose alpha is 0 everywhere."""

    @pytest.fixture
    def fresh(self) -> Model:
        model = tiny_model(trained=False, chunk=16, window=64, sinks=4, fold=8)
        model.eval()
        return model

    def test_it_has_no_state_and_is_window_and_sinks(self, fresh):
        tokens = random_tokens(1, 300)
        alone = window_model(fresh, fresh.allmem.window)
        logits, cache = feed(fresh, tokens, [300])
        expected, rings = feed(alone, tokens, [300])
        assert mx.array_equal(logits, expected)
        assert [c.nbytes for c in cache] == [c.nbytes for c in rings]

    @pytest.mark.parametrize("tokens", [1, 64])
    def test_it_launches_nothing(self, fresh, tokens):
        def primitives(model: Model) -> Counter:
            _, cache = feed(model, random_tokens(1, 256), [256])
            return count_step(model, cache, random_tokens(1, tokens)).primitives

        alone = window_model(fresh, fresh.allmem.window)
        assert primitives(fresh) == primitives(alone)

    def test_one_layer_that_has_learned_brings_the_states_back(self, fresh):
        assert fresh.memory_is_off
        fresh.layers[1].self_attn.alpha = mx.ones_like(fresh.layers[1].self_attn.alpha)
        assert not fresh.memory_is_off
        assert all(c.memory for c in fresh.make_cache())

    def test_it_is_trained_with_its_state(self, fresh):
        fresh.train()
        assert all(c.memory for c in fresh.make_cache())

    def test_a_compiled_model_and_a_compiled_training_step(self, fresh):
        """As mlx-lm trains: without a cache, and nothing can be evaluated meanwhile."""
        tokens = random_tokens(1, 100)
        expected = fresh(tokens)
        assert_close("logits", mx.compile(lambda x: fresh(x))(tokens), expected, 1e-5)
        fresh.train()

        @partial(mx.compile, inputs=[fresh.state], outputs=[fresh.state])
        def step(tokens: mx.array) -> tuple[mx.array, dict]:
            return nn.value_and_grad(fresh, lambda x: fresh(x).square().mean())(tokens)

        _, grads = step(tokens)
        assert mx.any(grads["model"]["layers"][0]["self_attn"]["alpha"])

    def test_it_is_told_by_whether_there_is_one_not_by_what_was_read(self, fresh):
        trained = tiny_model()
        for model in (fresh, trained):
            assert has_memory(model.make_cache()) == (model is trained)
            model.eval()
            assert Session(model, None).read_stats().memory == (model is trained)

    def test_a_state_of_it_is_refused_once_it_was_trained(self, fresh, tmp_path):
        state = states.new(fresh)
        fresh(random_tokens(1, 70), cache=state.cache)
        activate_memory(fresh)  # while the session goes on
        states.save(state, tmp_path / "state", fresh)
        with pytest.raises(AllMemError, match="saved while the model had no memory"):
            states.load(tmp_path / "state", fresh)

    def test_its_weights_stay_on_disk(self, tmp_path):
        """Until there is something that they are read for."""
        base = tiny_base_folder(tmp_path / "base", "qwen3")
        convert(base, tmp_path / "model", window=64, sinks=4, chunk=64)
        mx.clear_cache()
        before = mx.get_active_memory()
        model, _ = load(tmp_path / "model")
        held = mx.get_active_memory() - before
        used = sum(x.nbytes for x in model.used_parameters())
        unused = sum(x.nbytes for _, x in tree_flatten(model.parameters())) - used
        assert used <= held < used + unused / 2 and unused > 10**5
        model(random_tokens(1, 100))
        activate_memory(model)
        mx.eval(model(random_tokens(1, 100)))
        assert mx.get_active_memory() - before > used + unused / 2

    def test_it_is_not_trimmed(self, fresh):
        assert not can_trim_prompt_cache(fresh.make_cache())


@pytest.mark.parametrize("sinks", [0, 4])
def test_a_ring_keeps_no_more_than_it_holds(sinks):
    model = tiny_model(chunk=16, window=64, sinks=sinks, fold=8)
    _, cache = feed(model, random_tokens(1, 384), [64] * 6)
    for part in ("keys", "values"):
        x = getattr(cache[0].ring, part)
        size = x.nbytes
        setattr(cache[0].ring, part, None)
        mx.clear_cache()
        before = mx.get_active_memory()
        del x
        assert size <= before - mx.get_active_memory() < 2 * size  # rounded up


def test_a_convolution_keeps_no_more_than_its_tail():
    model = tiny_model(chunk=16, window=64, sinks=4, fold=8)
    _, cache = feed(model, random_tokens(1, 384), [64] * 6)
    size, before = cache[0].memory[0].nbytes, mx.get_active_memory()
    cache[0].memory = [None, *cache[0].memory[1:]]
    assert size <= before - mx.get_active_memory() < 2 * size


THREADS = """
import os, sys
from threading import Barrier, Thread
sys.path.append("tests")
from allmem_mlx.session import Session
from helpers import random_tokens, tiny_model

model = tiny_model(chunk=16, window=64)
tokens = random_tokens(1, 400)[0].tolist()
list(Session(model, None).read([tokens[:40]]))
read, together = [], Barrier(2)

def go():
    session = Session(model, None)
    together.wait()
    list(session.read([tokens]))
    read.append(session.state.read)

threads = [Thread(target=go) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(read, flush=True)
os._exit(0)  # MLX may abort where a thread's stream is taken down at the end
"""


def test_threads_read_with_one_model():
    """Each with a state of its own. Streams belong to threads: nothing that one has not
    evaluated may come to another."""
    for _ in range(3):
        done = run("-c", THREADS)
        assert done.stdout.decode() == "[384, 384]\n", done.stderr.decode()


def test_the_chunk_of_a_training_step_is_that_of_sliding_layers_too():
    model = sliding_model()
    tokens = random_tokens(1, 300)
    set_view(model, window=100, sinks=4, chunk=24)
    assert {x.self_attn.config.chunk for x in model.layers} == {24}
    at_once, _ = feed(model, tokens, [300])
    one_by_one, _ = feed(model, tokens, [1] * 300)
    assert_close("logits", at_once, one_by_one, TOLERANCE)


def test_a_block_launches_much_less_than_its_chunks():
    model = tiny_model(
        chunk=16, window=128, sinks=4, fold=16, head_dim=32, hidden_dim=64
    )
    assert model.allmem.block == 128

    def ratio(model: Model, memory: kernels.Operations) -> float:
        block, chunk = (launches(model, size, memory) for size in (128, 16))
        return block / chunk

    assert ratio(model, kernels.REFERENCE) < 0.6
    assert ratio(model, kernels.METAL) < 0.4
    alone = window_model(model, model.allmem.window)
    assert ratio(alone, kernels.REFERENCE) < 0.3


def test_nothing_is_scored_that_no_query_of_a_chunk_sees(monkeypatch):
    model = wide_model("bounded")
    c, seen = model.allmem, set()
    fetch = ring.Tiles.update_and_fetch

    def noted(self, keys, values):
        found = fetch(self, keys, values)
        seen.add((found[0].shape[2], self.mask(c.chunk, False).shape))
        return found

    monkeypatch.setattr(ring.Tiles, "update_and_fetch", noted)
    feed(model, random_tokens(1, LENGTH), [LENGTH])
    columns = c.sinks + c.window + c.chunk
    assert seen == {(columns, (c.chunk, columns))}


def test_a_block_is_derived_and_no_setting():
    assert "block" not in {field.name for field in dataclasses.fields(AllMemConfig)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = load(active_folder(folder, chunk=16, fold=8, window=64))
    assert (model.allmem.block, model.allmem.chunk) == (64, 16)
    return model, tokenizer


class TestSession:
    """Blocks of 64 tokens, chunks of 16."""

    TOKENS = random_tokens(1, 500, vocab=120)[0].tolist()

    def pieces(self, tokens: list[int], seed: int) -> list[list[int]]:
        rng, cut = random.Random(seed), [0]
        while cut[-1] < len(tokens):
            cut.append(min(len(tokens), cut[-1] + rng.randint(0, 100)))
        return [tokens[a:b] for a, b in pairwise(cut)]

    def assert_same(self, actual: State, expected: State) -> None:
        """To the bit."""
        assert (actual.read, actual.waiting) == (expected.read, expected.waiting)
        assert actual.digest == expected.digest
        for name, x in expected.arrays.items():
            assert mx.array_equal(actual.arrays[name], x), name

    @pytest.mark.parametrize("length", [1, 16, 17, 64, 65, 80, 81, 128, 500])
    def test_no_more_than_a_chunk_waits(self, tiny, length):
        session = Session(*tiny)
        done = list(session.read(self.pieces(self.TOKENS[:length], length)))
        blocks = (length - 1) // 64  # the last token waits
        assert 1 <= len(session.state.waiting) <= 16
        assert session.state.tokens == length
        assert done == [
            *range(64, length, 64),
            *range(blocks * 64 + 16, length, 16),
        ]

    @pytest.mark.parametrize("seed", range(4))
    def test_the_pieces_do_not_matter(self, tiny, seed):
        session, other = Session(*tiny), Session(*tiny)
        list(session.read([self.TOKENS]))
        list(other.read(self.pieces(self.TOKENS, seed)))
        self.assert_same(other.state, session.state)

    @pytest.mark.parametrize("stop", range(0, 14))
    def test_where_it_was_interrupted_does_not_matter(self, tiny, tmp_path, stop):
        model = tiny[0]
        session, other = Session(*tiny), Session(*tiny)
        list(session.read([self.TOKENS]))
        pieces = self.pieces(self.TOKENS, seed=stop)
        for _ in zip(range(stop), other.read(pieces), strict=False):
            pass
        states.save(other.state, tmp_path / "state", model)
        opened = Session(*tiny, states.load(tmp_path / "state", model))
        list(opened.read(states.unread(pieces, opened.state)))
        self.assert_same(opened.state, session.state)
        say = [[x.token for x in s.generate(max_tokens=9)] for s in (opened, session)]
        assert say[0] == say[1]

    @pytest.mark.parametrize("step", [64, 128, 192, 1024])
    def test_a_step_of_whole_blocks_changes_nothing(self, tiny, step):
        session, other = Session(*tiny), Session(*tiny)
        list(session.read([self.TOKENS]))
        list(other.read([self.TOKENS], step=step))
        self.assert_same(other.state, session.state)

    @pytest.mark.parametrize("step", [7, 16, 100])
    def test_any_step_changes_no_more_than_rounding(self, tiny, step):
        logits = []
        for each in (None, step):
            session = Session(*tiny)
            list(session.read([self.TOKENS], step=each))
            tokens = mx.array([[*session.state.waiting, *range(40)]])
            cache = session.state.cache
            logits.append(feed(tiny[0], tokens, [tokens.shape[1]], cache)[0][:, -40:])
        assert_close("logits", *logits, 1e-4)

    def test_two_readings_in_turns(self, tiny):
        """The limit on wired memory is entered and left by each."""
        sessions = [Session(*tiny), Session(*tiny)]
        readings = [session.read([self.TOKENS]) for session in sessions]
        for _ in zip(*readings, strict=True):
            pass
        self.assert_same(sessions[0].state, sessions[1].state)
