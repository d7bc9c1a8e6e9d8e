"""At alpha = 0 a hybrid is its base model over window and sinks."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from dense import dense_logits
from helpers import assert_close, feed, random_tokens, tiny_model
from mlx.utils import tree_flatten

from allmem_mlx import load
from allmem_mlx.variants import base_model

torch.set_num_threads(2)

# Within window and sinks, 144 tokens of a real model and 52 of a tiny one.
REAL_CUTS = ([64, 64, 16], [25, 1, 1, 1, 38, 50, 28], [1] * 9 + [120] + [1] * 15)
TINY_CUTS = ([52], [1] * 52, [32, 20], [7, 1, 30, 14])


def assert_bit_equal(model, tokens, cuts):
    """Fed in the same cuts: blocks end at chunks, where the hybrid cuts them too."""
    from mlx_lm.models.cache import make_prompt_cache

    chunk, aligned, position = model.allmem.chunk, [], 0
    for size in cuts:
        end = position + size
        while position < end:
            step = min(end - position, chunk - position % chunk)
            aligned.append(step)
            position += step
    base = base_model(model)
    ours, _ = feed(model, tokens, cuts)
    theirs, _ = feed(base, tokens, aligned, make_prompt_cache(base))
    assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("cuts", TINY_CUTS, ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tiny_inside_the_window(family, dtype, cuts):
    model = tiny_model(family, trained=False)
    model.set_dtype(dtype, predicate=lambda x: True)
    assert_bit_equal(model, random_tokens(2, 52), cuts)


@pytest.mark.parametrize("sizes", [{}, {"window": 16, "chunk": 32}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tiny_beyond_the_window(family, sizes):
    model = tiny_model(family, trained=False, **sizes)
    tokens = random_tokens(1, 300)
    logits, _ = feed(model, tokens, [300])
    expected = dense_logits(model, tokens[0].tolist())
    assert_close("logits", logits[0], expected, 1e-5)
    # The comparison would notice a window of one token less.
    config = model.allmem
    model.allmem = type(config)(**{**vars(config), "window": config.window - 1})
    wrong = dense_logits(model, tokens[0].tolist())
    with pytest.raises(AssertionError):
        assert_close("logits", logits[0], wrong, 1e-5)


@pytest.mark.parametrize("positions", ["bounded", "absolute"])
def test_no_position_exceeds_the_bound(positions, monkeypatch):
    """The largest position that RoPE is given, over 10 windows."""
    model = tiny_model(trained=False, positions=positions)
    rope = type(model.layers[0].self_attn.rope)
    seen = []

    def record(self, x, offset=0):
        seen.append(offset + x.shape[-2] - 1)
        return original(self, x, offset=offset)

    original = rope.__call__
    monkeypatch.setattr(rope, "__call__", record)
    feed(model, random_tokens(1, 520), [520])
    config = model.allmem
    bound = config.sinks + config.window + config.chunk
    assert (max(seen) < bound) == (positions == "bounded")


@pytest.fixture(scope="module")
def fresh(smollm2_hybrid):
    """With windows of 128 tokens."""
    return load(smollm2_hybrid, model_config={"window": 128, "chunk": 64})


@pytest.fixture(scope="module")
def tokens(fresh, book):
    """300 tokens: the ring is turned at the chunks from 192 and from 256."""
    return fresh[1].encode(book.read_text()[:8000])[:300]


@pytest.mark.real_model
class TestRealModel:
    @pytest.mark.parametrize("cuts", REAL_CUTS, ids=len)
    def test_inside_the_window(self, fresh, tokens, cuts):
        assert_bit_equal(fresh[0], mx.array(tokens[:144])[None], cuts)

    def test_beyond_the_window(self, fresh, tokens):
        model, _ = fresh
        logits, _ = feed(model, mx.array(tokens)[None], [len(tokens)])
        assert_close("logits", logits[0], dense_logits(model, tokens), 1e-5)

    def test_transformers(self, fresh, gguf_file, tokens):
        """Hugging Face reads the same GGUF file by itself, and agrees."""
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
        )
        with torch.no_grad():
            logits = theirs(torch.tensor([tokens[:144]])).logits[0]
        expected = logits.double().log_softmax(-1).numpy()
        ours = fresh[0](mx.array(tokens[:144])[None])[0].astype(mx.float32)
        actual = torch.tensor(np.array(ours)).double().log_softmax(-1).numpy()
        assert (actual.argmax(-1) == expected.argmax(-1)).all()
        assert np.abs(actual - expected).max() < 1e-3

    def test_memory_is_fresh(self, fresh):
        alphas = [
            x for name, x in tree_flatten(fresh[0].parameters()) if "alpha" in name
        ]
        assert len(alphas) == 30 and not any(mx.any(x).item() for x in alphas)
