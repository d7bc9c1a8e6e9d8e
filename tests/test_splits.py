"""How the caller cuts the input does not change the result."""

import copy
import random
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import (
    TINY_BASE,
    assert_close,
    assert_same_state,
    feed,
    random_cuts,
    random_tokens,
    slow_beyond,
    state_arrays,
    tiny_model,
)
from mlx_lm.generate import generate_step

from allmem_mlx.model import Model

LENGTH = 3_000
TOLERANCE = 1e-5
# Fast weights are a recurrence, and can multiply a difference in the last bits while
# they read: after 3,000 tokens one head of twelve differed by 4e-5 with one BLAS, and
# by 2e-6 with another.
STATE_TOLERANCE = 1e-4
NEAR_TIE = 2e-5  # logits are about 1 in size, and equal to 7e-6 between cuts
SEEDS = 10  # cuts per case, 50 in all

# At and beside fold (8), chunk (32) and window; and large ones.
SMALL_CUTS = (1, 1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 257)
LARGE_CUTS = (1, 5, 95, 129, 300, 1_024)


def assert_same_greedy(actual: mx.array, expected: mx.array) -> None:
    """The same next token everywhere, unless the two best are equal up to rounding, as
    happens once in 24,000 tokens."""
    chosen = actual.argmax(-1, keepdims=True)
    lost = expected.max(-1) - mx.take_along_axis(expected, chosen, axis=-1)[..., 0]
    assert lost.max().item() < NEAR_TIE
    assert (lost > 0).sum().item() <= 1


@dataclass
class Reading:
    """A model, tokens, and what it makes of them when they come all at once."""

    model: Model
    tokens: mx.array
    logits: mx.array
    cache: list

    def assert_same(self, logits: mx.array, cache: list) -> None:
        assert_close("logits", logits, self.logits, TOLERANCE)
        assert_same_greedy(logits, self.logits)
        assert_same_state(cache, self.cache, STATE_TOLERANCE)
        for layer, expected in zip(cache, self.cache, strict=True):
            assert layer[0].offset == expected[0].offset


def read_at_once(family: str, batch: int, length: int, **allmem) -> Reading:
    model = tiny_model(family, **allmem)
    tokens = random_tokens(batch, length)
    return Reading(model, tokens, *feed(model, tokens, [length]))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("llama", 1, {"window": 48}), id="llama-B1"),
        pytest.param(("llama", 3, {"window": 20}), id="llama-B3-window<chunk"),
        pytest.param(("qwen3", 1, {"window": 20}), id="qwen3-B1-window<chunk"),
        pytest.param(("qwen3", 3, {"window": 48}), id="qwen3-B3"),
        pytest.param(
            ("qwen3", 1, {"window": 33, "sinks": 0, "positions": "absolute"}),
            id="qwen3-B1-absolute-no-sinks",
        ),
        pytest.param(("qwen3", 2, {"window": 48, "updates": "down"}), id="qwen3-down"),
    ],
)
def reading(request) -> Reading:
    family, batch, allmem = request.param
    return read_at_once(family, batch, LENGTH, **allmem)


@pytest.mark.parametrize("seed", slow_beyond(2, range(SEEDS)))
def test_any_cuts_give_the_same_logits_and_state(reading, seed):
    """Even seeds cut small, odd ones large."""
    cuts = random_cuts(LENGTH, seed, LARGE_CUTS if seed % 2 else SMALL_CUTS)
    logits, cache = feed(reading.model, reading.tokens, cuts)
    reading.assert_same(logits, cache)


@pytest.mark.parametrize("window", [20, 48])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_token_at_a_time_gives_the_same_logits_and_state(family, window):
    reading = read_at_once(family, 1, 600, window=window)
    logits, cache = feed(reading.model, reading.tokens, [1] * 600)
    reading.assert_same(logits, cache)


@pytest.mark.parametrize("length", [31, 32, 33, 63, 64, 65])
def test_a_length_at_the_chunk_grid_gives_the_same_state(length):
    """A chunk is written when its last token comes, not when the next one does."""
    reading = read_at_once("qwen3", 2, length)
    for cuts in ([length - 1, 1], [1, length - 1], [1] * length, [24, length - 24]):
        reading.assert_same(*feed(reading.model, reading.tokens, cuts))


def test_the_fold_does_not_change_the_result():
    """It only says how many tokens' gradients are added at once."""
    tokens = random_tokens(2, 200)
    expected, cache = feed(tiny_model(fold=32), tokens, [200])
    for fold in (1, 4, 16):
        logits, other = feed(tiny_model(fold=fold), tokens, random_cuts(200, fold))
        assert_close(f"logits with fold {fold}", logits, expected, TOLERANCE)
        for layer, same in zip(other, cache, strict=True):
            # W, its scales and M; G, the decay and the block hold other tokens.
            for part in range(1, 10):
                where = f"array {part} with fold {fold}"
                assert_close(where, layer[1][part], same[1][part], TOLERANCE)


def test_two_states_of_one_model_do_not_touch_each_other():
    """Two documents read in turns are read as each is alone."""
    model, rng = tiny_model(), random.Random(0)
    documents = [random_tokens(1, 300, seed) for seed in (1, 2)]
    alone = [feed(model, tokens, [300]) for tokens in documents]
    caches = [model.make_cache() for _ in documents]
    read, logits = [0, 0], [[], []]
    while min(read) < 300:
        i = rng.randrange(2)
        step = documents[i][:, read[i] : read[i] + rng.randint(1, 50)]
        if step.size:
            logits[i].append(model(step, cache=caches[i]))
            read[i] += step.size
    for i, (expected, cache) in enumerate(alone):
        together = mx.concatenate(logits[i], axis=1)
        assert_close(f"document {i}", together, expected, TOLERANCE)
        assert_same_state(caches[i], cache, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_prefill_step_size_does_not_change_the_greedy_tokens(family):
    model = tiny_model(family)
    # A head of its own: with the embedding's, the best next token is the last one.
    model.lm_head = nn.Linear(TINY_BASE["hidden_size"], TINY_BASE["vocab_size"])
    model.args.tie_word_embeddings = False
    prompt = random_tokens(1, 300)[0]

    def generate(prefill_step_size: int) -> list[int]:
        steps = generate_step(
            prompt, model, max_tokens=100, prefill_step_size=prefill_step_size
        )
        return [token for token, _ in steps]

    expected = []
    logits, cache = feed(model, prompt[None], [300])
    for _ in range(100):
        expected.append(logits[0, -1].argmax().item())
        logits = model(mx.array([[expected[-1]]]), cache=cache)
    assert len(set(expected)) > 5, "tokens that are all alike show nothing"
    assert generate(2048) == expected
    assert generate(50) == expected
    assert generate(7) == expected


def test_a_copied_state_goes_its_own_way():
    """As mlx-lm's server copies one to reuse a prompt."""
    model = tiny_model()
    tokens = random_tokens(1, 400)
    _, cache = feed(model, tokens[:, :200], [200])
    copied = copy.deepcopy(cache)
    feed(model, random_tokens(1, 77, seed=1), [77], copied)
    logits, _ = feed(model, tokens[:, 200:], [200], cache)
    expected, _ = feed(model, tokens, [200, 200])
    assert mx.array_equal(logits, expected[:, 200:])


def test_a_state_kept_by_its_arrays_does_not_change():
    """A step makes new arrays; whoever holds the old ones has the old state."""
    model = tiny_model()
    _, cache = feed(model, random_tokens(1, 205), [205])
    held = state_arrays(cache)
    before = {path: np.array(x) for path, x in held.items()}
    feed(model, random_tokens(1, 100), [1, 1, 1, 97], cache)
    assert all(np.array_equal(before[path], np.array(held[path])) for path in held)
