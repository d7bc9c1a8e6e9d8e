"""What a state has of a chunk that is open: no more than is there, and all of it."""

import mlx.core as mx
import pytest
from helpers import (
    assert_close,
    assert_same_arrays,
    random_tokens,
    tiny_model,
)

from allmem_mlx import load
from allmem_mlx import state as states
from allmem_mlx.benchmarking import flops
from allmem_mlx.cache import attention_caches
from allmem_mlx.config import UPDATES
from allmem_mlx.memory.layer import MemoryState
from allmem_mlx.responses import state_bytes

CHUNK = 32
FORMS = [(1, "all"), (8, "all"), (32, "all"), (8, "down")]  # fold and updates
TOKENS = random_tokens(2, 3 * CHUNK + 20)
NEXT = (1, 5, 20)  # tokens that come after a place, in three calls


def model_of(fold: int, updates: str):
    return tiny_model(chunk=CHUNK, fold=fold, updates=updates, window=40)


def read(model, state: states.State, *sizes: int) -> mx.array:
    """Logits of the next tokens, of both documents, in so many calls."""
    logits = []
    for size in sizes:
        block = TOKENS[:, state.read : state.read + size]
        logits.append(model(block, cache=state.cache))
        mx.eval(logits[-1], state.arrays)
    return mx.concatenate(logits, axis=1)


def memories(state: states.State) -> list[MemoryState]:
    return [MemoryState.from_arrays(x.memory) for x in attention_caches(state.cache)]


@pytest.mark.parametrize("fold, updates", FORMS)
def test_what_is_there_after_each_token(fold, updates):
    """G while tokens are folded and not written, rows while tokens wait: in the cache,
    in its bytes, and in what a file gets."""
    model = model_of(fold, updates)
    state, written = states.new(model), len(model.allmem.written)
    most = 2 * flops.ring_bytes(flops.Sizes.of(model))  # two documents
    most += 2 * flops.memory_bytes(flops.Sizes.of(model))
    sizes = []
    for token in range(1, 2 * CHUNK + 1):
        read(model, state, 1)
        folded, waiting = token % CHUNK // fold > 0, token % fold > 0
        for memory in memories(state):
            assert (memory.grads is not None) == folded, token
            assert (memory.decay_sum is not None) == folded, token
            assert (memory.pending is not None) == waiting, token
        opened = [name for name in state.arrays if ".open." in name]
        assert len(opened) == 2 * ((written + 1) * folded + waiting), token
        assert state.nbytes == state_bytes(state.cache) <= most
        sizes.append(state.nbytes)
    assert max(sizes) == sizes[CHUNK - 2] == most
    assert min(sizes) == sizes[CHUNK - 1] == sizes[2 * CHUNK - 1]
    assert sizes[:CHUNK] == sizes[CHUNK:]


def test_the_size_of_a_state_does_not_depend_on_the_chunk():
    """Not even at its end: with several folds in each."""
    sizes = []
    for chunk in (16, 512):
        model = tiny_model(chunk=chunk, fold=8)
        state = states.new(model)
        model(random_tokens(1, 2 * chunk - 1), cache=state.cache)
        sizes.append(state.nbytes)
        model(random_tokens(1, 1), cache=state.cache)
        sizes.append(state.nbytes)
    assert sizes[:2] == sizes[2:]


@pytest.mark.parametrize("fold, updates", FORMS)
def test_saved_and_opened_after_each_token(fold, updates, tmp_path):
    """All bits of what comes after, as if nothing had been saved."""
    model = model_of(fold, updates)
    state = states.new(model)
    for token in range(1, 2 * CHUNK + 2):
        read(model, state, 1)
        states.save(state, tmp_path / "state", model)
        opened, going_on = states.load(tmp_path / "state", model), state.fork()
        assert opened.read == token
        assert_same_arrays(opened.arrays, state.arrays)
        assert mx.array_equal(
            read(model, opened, *NEXT), read(model, going_on, *NEXT)
        ), token
        assert_same_arrays(opened.arrays, going_on.arrays)


@pytest.mark.parametrize("fold, updates", FORMS)
def test_a_fork_after_each_token_is_another(fold, updates):
    model = model_of(fold, updates)
    state = states.new(model)
    for token in range(1, CHUNK + 2):
        read(model, state, 1)
        before, fork = dict(state.arrays), state.fork()
        expected = read(model, fork.fork(), *NEXT)
        assert_same_arrays(state.arrays, before)
        assert_same_arrays(fork.arrays, before)
        assert mx.array_equal(read(model, fork, *NEXT), expected), token


@pytest.mark.parametrize("fold, updates", FORMS)
@pytest.mark.parametrize("cuts", [[7] * 16, [33, 31, 40, 8], [8, 24, 64, 16]], ids=str)
def test_cuts_make_no_difference(fold, updates, cuts):
    """To the logits, and to any array of the state; see test_splits.py."""
    model = model_of(fold, updates)
    at_once, in_parts = states.new(model), states.new(model)
    expected = read(model, at_once, sum(cuts))
    assert_close("logits", read(model, in_parts, *cuts), expected, 1e-5)
    assert in_parts.arrays.keys() == at_once.arrays.keys()
    for name, x in at_once.arrays.items():
        assert_close(name, in_parts.arrays[name], x, 1e-5)


def test_what_is_not_written_is_in_no_state():
    """With down alone, a third of the matrices of a state with all."""
    names, sizes = {}, {}
    for updates in UPDATES:
        model = model_of(8, updates)
        state = states.new(model)
        read(model, state, CHUNK + 20)
        names[updates] = state.arrays.keys()
        sizes[updates] = {
            name: x.nbytes for name, x in state.arrays.items() if ".memory." in name
        }
    left_out = names["all"] - names["down"]
    assert names["down"] < names["all"]
    assert left_out == {x for x in names["all"] if x.endswith((".gate", ".up"))}
    assert len(left_out) == 2 * 4 * 2
    for name, size in sizes["down"].items():
        assert size == sizes["all"][name]


@pytest.mark.real_model
def test_the_default_model(default_folder):
    """It was 104.7 MB, with W, M and G of gate, up and down at all times."""
    model, _ = load(default_folder)
    c, sizes = model.allmem, flops.Sizes.of(model)
    assert (c.window, c.chunk, c.fold, c.updates) == (512, 64, 64, "down")
    most = flops.ring_bytes(sizes) + flops.memory_bytes(sizes)
    state, found = states.new(model), {}
    for tokens in (1, 62, 1):
        model(mx.zeros((1, tokens), mx.int32), cache=state.cache)
        found[state.read] = state.nbytes
    assert not any("grads" in name for name in state.arrays)
    assert found[1] == found[63] == most == 43_997_184
    assert found[64] == most - 11 * 3 * 64 * (2 * 128 + 4) * 4 == 41_800_704
