"""What the tests share: assertions, tiny models and folders, the generate command."""

import json
import random
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from processes import run, start
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from allmem_mlx.model import Model, ModelArgs

# Small enough for every boundary to come up within a few hundred tokens.
TINY_ALLMEM = {
    "heads": 2,
    "head_dim": 16,
    "hidden_dim": 32,
    "window": 48,
    "sinks": 4,
    "chunk": 32,
    "fold": 8,
}
TINY_BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


def slow_beyond(count: int, values: Iterable) -> list:
    """Parameters, of which `make quick` tries ``count``."""
    few, rest = list(values)[:count], list(values)[count:]
    return [*few, *(pytest.param(x, marks=pytest.mark.slow) for x in rest)]


def relative_error(actual, expected) -> float:
    """``||actual - expected|| / ||expected||`` in float64."""
    actual = np.asarray(actual, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = np.linalg.norm(expected) or 1.0
    return float(np.linalg.norm(actual - expected) / scale)


def assert_close(name: str, actual, expected, tolerance: float) -> None:
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"


def tiny_args(family: str = "qwen3", **allmem) -> ModelArgs:
    """``allmem`` changes sizes of the hybrid layer."""
    return ModelArgs.from_dict(
        {
            **TINY_BASE,
            "model_type": "allmem",
            "base_model_type": family,
            "allmem": {**TINY_ALLMEM, **allmem},
        }
    )


def tiny_model(family: str = "qwen3", seed: int = 0, trained: bool = True, **allmem):
    """A random model of 2 layers; ``trained`` gives it an active memory."""
    mx.random.seed(seed)
    model = Model(tiny_args(family, **allmem))
    if trained:
        activate_memory(model)
    mx.eval(model.parameters())
    model.eval()
    return model


def activate_memory(model: Model) -> None:
    """Random memory parameters of the size training leaves behind: alpha is not 0, the
    rates depend on the token, the taps overlap."""

    def perturb(path, x):
        if path.endswith(".alpha"):
            return mx.random.normal(x.shape, scale=0.5)
        if path.endswith("in_proj.weight"):
            return mx.random.normal(x.shape, scale=x.shape[-1] ** -0.5)
        if path.endswith((".rate_bias", ".conv_weight")) or ".memory" in path:
            return x + mx.random.normal(x.shape, scale=0.1)
        return x

    model.update(tree_map_with_path(perturb, model.parameters()))


def random_tokens(batch: int, length: int, seed: int = 0, vocab: int = 128) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


def random_cuts(length: int, seed: int, sizes=(1, 1, 2, 7, 31, 33, 64, 100, 257)):
    """Sizes that add up to ``length``."""
    rng, cuts = random.Random(seed), []
    while (left := length - sum(cuts)) > 0:
        cuts.append(min(rng.choice(sizes), left))
    return cuts


def feed(model, tokens: mx.array, cuts, cache=None) -> tuple[mx.array, list]:
    """Logits of all tokens, and the state after them."""
    cache = cache or model.make_cache()
    logits, start = [], 0
    for size in cuts:
        logits.append(model(tokens[:, start : start + size], cache=cache))
        mx.eval(logits[-1], [c.state for c in cache])
        start += size
    assert start == tokens.shape[1]
    return mx.concatenate(logits, axis=1), cache


def state_arrays(cache) -> dict[str, mx.array]:
    """Every array of a state, by its place in it."""
    leaves = tree_flatten([c.state for c in cache])
    return {path: x for path, x in leaves if isinstance(x, mx.array)}


def assert_same_arrays(actual: dict, expected: dict) -> None:
    """The same names, and under each the same to the bit."""
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert mx.array_equal(actual[name], x), name


def assert_same_state(actual, expected, tolerance: float) -> None:
    actual, expected = state_arrays(actual), state_arrays(expected)
    assert actual.keys() == expected.keys()
    for path, x in expected.items():
        assert_close(f"state {path}", actual[path], x, tolerance)


def assert_refused(result, code: int, *words: str) -> None:
    """One line on stderr that has the words, nothing on stdout, and the exit code."""
    message = result.stderr.decode()
    assert result.returncode == code, message
    assert message.endswith("\n") and message.count("\n") == 1, message
    assert not result.stdout
    for word in words:
        assert str(word) in message, message


def tiny_tokenizer(folder: Path) -> None:
    """Writes a byte-level tokenizer of 128 tokens with a chat template."""
    letters = [*bytes_to_unicode().values()][:122] + ["Ġ", "Ċ"]  # space and newline
    vocab = {token: i for i, token in enumerate([*letters, "He"])}
    specials = ["<|im_start|>", "<|im_end|>", "<pad>"]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("H", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=specials[0],
        eos_token=specials[1],
        pad_token=specials[2],
        chat_template=template,
    ).save_pretrained(folder)


def tiny_base_folder(folder: Path, family: str = "qwen3", **config) -> Path:
    """A base model's folder as Hugging Face writes it, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{**TINY_BASE, "eos_token_id": 126, "bos_token_id": 125, **config}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, **changed: Any) -> None:
    (folder / "config.json").write_text(json.dumps(read_config(folder) | changed))


def change_weights(folder: Path, change: Callable[[dict], Any]) -> None:
    file = folder / "model.safetensors"
    weights, metadata = mx.load(str(file), return_metadata=True)
    mx.eval(weights)  # the file is about to be written
    change(weights)
    mx.save_safetensors(str(file), weights, metadata)


def transformers_model(folder: Path, kind=None, **options):
    """A folder as transformers reads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = kind or AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, **options).eval()


def transformers_logits(model, tokens: mx.array) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def active_folder(folder: Path, scale: float = 0.3, **options) -> Path:
    """A converted model folder with an active memory, as training would leave it, and
    weights of a scale at which what it says depends on what it read."""
    from mlx_lm.utils import save_model

    from allmem_mlx import load
    from allmem_mlx.convert import convert

    base = tiny_base_folder(folder / "base", "qwen3", initializer_range=scale)
    convert(base, folder / "model", **{"window": 48, "sinks": 4, **options})
    model, _ = load(folder / "model")
    mx.random.seed(0)
    activate_memory(model)
    save_model(folder / "model", model)
    return folder / "model"


WORDS = "RING TURNS QUICK BROWN LAZY HOUSE RIVER STONE NIGHT GREEN".split()
PLACES = ["OSLO", "QUITO", "PARIS", "CAIRO", "DELHI", "LIMA"]


def prose(places=PLACES) -> str:
    """Sentences of a few words, of which one in 40 tells something."""
    lines = []
    for i in range(40 * len(places)):
        words = [WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(6)]
        lines.append(f"THE {' '.join(words)}.")
        if i % 40 == 20:
            lines.append(f"THE CUP OF KING{i // 40} IS IN {places[i // 40]}.")
    return " ".join(lines)


class Generate:
    """The generate command with a model, at temperature 0 unless flags say another."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _command(self, flags) -> list:
        temp = [] if "--temp" in flags else ["--temp", "0"]
        return ["allmem_mlx.generate", "--model", self.folder, *temp, *flags]

    def start(self, *flags, **options):
        return start(*self._command(flags), **options)

    def __call__(self, *flags, **options) -> subprocess.CompletedProcess:
        return run(*self._command(flags), **options)

    def answer(self, *flags, **options) -> str:
        result = self(*flags, **options)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()


def made_up_text(seed: int, length: int) -> str:
    """Sentences of made-up words, and a few others, in which statements can be
    planted."""
    rng, found = random.Random(seed), ""
    while len(found) < length:
        count = rng.randint(5, 12)
        words = ["".join(rng.choices("bdfgklmnrst", k=6)) for _ in range(count)]
        words[1], words[3] = rng.choice(["was", "and"]), rng.choice(["the", "of"])
        found += " ".join(words).capitalize() + ". "
    return found
