"""Real GGUF files: SmolLM2-135M-Instruct (Q4_1) and Gemma 3 270M (Q4_K_M)."""

import json
import math
import urllib.request

import mlx.core as mx
import numpy as np
import pytest
from helpers import assert_close, transformers_model

from allmem_mlx import generate, load
from allmem_mlx.convert import convert, gguf

pytestmark = pytest.mark.real_model

LENGTH = 768  # half as much again as the layers of Gemma that slide see
BLOCK = 128  # tokens whose logits are in memory; Gemma has 262,144 for each

TEXTS = [
    *("\n", "\n\n", "\n" * 40, " ", "   ", " " * 40 + "y", "\r\n\ttabs\t\t\n"),
    *("  two   three    many          spaces", " leading", "trailing "),
    *("émigré naïve Çédille", "e\u0301", "🚀 😶‍🌫️ 👩‍👩‍👧‍👦 ✅", "\u200b\u200d\ufffd"),
    *("我想在apple工作1314151天～", "日本語のテキスト", "नमस्ते दुनिया", "ᄀᄀ가힣"),
    *("1234567890 3.14159 1,000,000", "<table><tr><td>x</td></tr></table>"),
    *("<start_of_turn>user\nHi<end_of_turn>\n", "<|im_start|>user\nHi<|im_end|>\n"),
    *("<bos>twice<eos>", "<0x0A> literal", "x" * 300, "\x00\x01\x7f"),
]


@pytest.fixture(scope="module")
def gemma3(gemma3_file, tmp_path_factory):
    """The hybrid, none of whose tokens leaves the window, and its tokenizer."""
    folder = tmp_path_factory.mktemp("gemma3-allmem") / "model"
    convert(gemma3_file, folder, dtype="float32", window=LENGTH, chunk=BLOCK)
    return load(folder)


@pytest.fixture(scope="module")
def gemma3_of_transformers(gemma3_file):
    """The same file, as transformers reads it by itself."""
    return transformers_model(gemma3_file.parent, gguf_file=gemma3_file.name)


@pytest.fixture(scope="module")
def gemma3_unpacked(gemma3_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3-unpacked")
    gguf.unpack(gemma3_file, folder, "float32")
    return folder


def total_loss(logits, next_ones) -> float:
    """In float64: MLX's and PyTorch's own sums differ by 1e-4."""
    logits = np.array(logits[: len(next_ones)], dtype=np.float64)
    scores = logits[np.arange(len(next_ones)), next_ones]
    largest = logits.max(axis=-1)
    logits = np.exp(logits - largest[:, None])
    return float((np.log(logits.sum(axis=-1)) + largest - scores).sum())


def perplexity(model, tokens) -> float:
    """Of the hybrid, that reads block by block."""
    cache, loss = model.make_cache(), 0.0
    for start in range(0, len(tokens) - 1, BLOCK):
        end = start + BLOCK
        logits = model(mx.array([tokens[start:end]]), cache=cache)[0]
        loss += total_loss(logits, tokens[start + 1 : end + 1])
    return math.exp(loss / (len(tokens) - 1))


def transformers_perplexity(model, tokens) -> float:
    import torch

    loss = 0.0
    with torch.no_grad():
        hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
        for start in range(0, len(tokens) - 1, BLOCK):
            end = start + BLOCK
            logits = model.lm_head(hidden[start:end]).numpy()
            loss += total_loss(logits, tokens[start + 1 : end + 1])
    return math.exp(loss / (len(tokens) - 1))


def test_smollm2_s_tokens(smollm2, book):
    """The tokenizer built from the metadata cuts like the model's own: digits one by
    one, words with the space before them, special tokens whole."""
    _, tokenizer = smollm2
    text = "<|im_start|>user\nIn 1865, naïve  Alice\tdidn't sleep.\n\n<|im_end|>"
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert "".join(tokens[:-1]).count("1") == 1 and "1865" not in tokens
    assert tokens[0] == "<|im_start|>" and tokens[-1] == "<|im_end|>"
    assert " Alice" in tokens
    whole = book.read_text()
    assert tokenizer.decode(tokenizer.encode(whole)) == whole


def test_smollm2_answers(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )
    text = generate(model, tokenizer, prompt, max_tokens=20)
    assert text == "The capital of France is Paris."


def test_smollm2_s_weights(gguf_file, tmp_path):
    """MLX reads this file too, and its types exactly."""
    gguf.unpack(gguf_file, tmp_path, "float32")
    actual = mx.load(str(tmp_path / "model.safetensors"))
    arrays = mx.load(str(gguf_file))
    names = {
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down",
        "model.embed_tokens.weight": "token_embd",
    }
    for name, stem in names.items():
        packed, scales = arrays[f"{stem}.weight"], arrays[f"{stem}.scales"]
        bits = packed.shape[-1] // scales.shape[-1]
        expected = mx.dequantize(
            packed,
            scales.astype(mx.float32),
            arrays[f"{stem}.biases"].astype(mx.float32),
            group_size=32,
            bits=bits,
        )
        assert mx.array_equal(actual[name], expected), name


def test_smollm2_s_perplexity(smollm2_hybrid, gguf_file, book):
    config = {"window": LENGTH, "chunk": BLOCK}
    model, tokenizer = load(smollm2_hybrid, model_config=config)
    tokens = tokenizer.encode(book.read_text())[:LENGTH]
    other = transformers_model(gguf_file.parent, gguf_file=gguf_file.name)
    expected = transformers_perplexity(other, tokens)
    assert perplexity(model, tokens) == pytest.approx(expected, rel=1e-4)


def test_gemma3_s_perplexity(gemma3, gemma3_of_transformers, book):
    model, tokenizer = gemma3
    tokens = tokenizer.encode(book.read_text())[:LENGTH]
    expected = transformers_perplexity(gemma3_of_transformers, tokens)
    assert perplexity(model, tokens) == pytest.approx(expected, rel=1e-4)


def test_gemma3_goes_on(gemma3):
    """It is a base model: it continues."""
    model, tokenizer = gemma3
    for prompt, words in {
        "One, two, three, four,": " five, six, seven, eight,",
        "Monday, Tuesday, Wednesday,": " Thursday, Friday, Saturday, Sunday",
        "The opposite of hot is": " cold.",
    }.items():
        text = generate(model, tokenizer, tokenizer.encode(prompt), max_tokens=10)
        assert text.startswith(words), text


def test_gemma3_in_its_own_type(gemma3_file, tmp_path):
    """Which is bfloat16: in float16 it overflows."""
    convert(gemma3_file, tmp_path / "new")
    model, tokenizer = load(tmp_path / "new")
    assert model.dtype == mx.bfloat16
    logits = model(mx.array([tokenizer.encode("One, two, three, four,")]))
    assert tokenizer.decode([logits[0, -1].argmax().item()]) == " five"


def test_transformers_reads_gemma3(gemma3_unpacked, gemma3_of_transformers):
    actual = transformers_model(gemma3_unpacked).state_dict()
    expected = gemma3_of_transformers.state_dict()
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert_close(name, actual[name], x, 1e-6)


def test_gemma3_s_tokens(gemma3, gemma3_file, book):
    """Token for token transformers' own conversion of the file, on a whole book."""
    from transformers import AutoTokenizer

    _, tokenizer = gemma3
    other = AutoTokenizer.from_pretrained(
        gemma3_file.parent, gguf_file=gemma3_file.name
    )
    for text in [book.read_text(), *TEXTS]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        # A run of spaces that is longer than the longest token: transformers halves
        # it; llama.cpp and sentencepiece take the longest token first.
        if " " * 32 not in text:
            assert ids == other.encode(text, add_special_tokens=False), text[:80]
        assert tokenizer.decode(ids) == text, text[:80]
    assert tokenizer.encode("Hello")[0] == tokenizer.bos_token_id == 2


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_llama_cpp_cuts_the_same(name, gguf_file, gemma3_file, book, request):
    """Token for token llama.cpp itself, on a whole book (needs ``xllamacpp``)."""
    xllamacpp = pytest.importorskip("xllamacpp")
    _, tokenizer = request.getfixturevalue(name)
    parameters = xllamacpp.CommonParams()
    file = {"smollm2": gguf_file, "gemma3": gemma3_file}[name]
    parameters.model.path, parameters.n_ctx, parameters.warmup = str(file), 512, False
    server = xllamacpp.Server(parameters)
    for text in [book.read_text(), *TEXTS]:
        body = {"content": text, "add_special": True, "parse_special": True}
        question = urllib.request.Request(
            server.listening_address + "/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question) as answer:
            expected = json.load(answer)["tokens"]
        assert tokenizer.encode(text) == expected, text[:80]
