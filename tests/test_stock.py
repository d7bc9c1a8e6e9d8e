"""Stock mlx-lm commands on a converted folder, with the real model."""

import json

import pytest
from processes import run

from allmem_mlx import generate

pytestmark = pytest.mark.real_model

DOCUMENT = "Ishmael's ship is the Pequod. Its captain is Ahab. " * 4
QUESTION = "Who is the captain?"


def mlx_lm(command, folder, *flags):
    result = run("mlx_lm", command, "--model", folder, "--trust-remote-code", *flags)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def test_generate(default_folder, smollm2):
    model, tokenizer = smollm2
    out = mlx_lm("generate", default_folder, "--prompt", QUESTION, "-m", "8")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )
    assert generate(model, tokenizer, ids, max_tokens=8) in out
    assert f"Prompt: {len(ids)} tokens" in out


def test_needs_trust(default_folder):
    """Without the flag mlx-lm does not run the model file, and says so."""
    result = run("mlx_lm", "generate", "--model", default_folder, "-m", "1")
    assert result.returncode != 0
    assert b"trust_remote_code" in result.stderr


def test_prompt_cache(default_folder, smollm2, tmp_path):
    """A document cached by one command answers in another as if read in one go."""
    model, tokenizer = smollm2
    file = tmp_path / "document.safetensors"
    flags = ["--prompt-cache-file", file]
    mlx_lm("cache_prompt", default_folder, *flags, "--prompt", DOCUMENT)
    out = mlx_lm("generate", default_folder, *flags, "--prompt", QUESTION, "-m", "8")

    message = [{"role": "user", "content": DOCUMENT}]
    read = tokenizer.apply_chat_template(message, continue_final_message=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        tokenize=False,
        add_generation_prompt=True,
    )
    asked = tokenizer.encode(text[text.index(QUESTION) :], add_special_tokens=False)
    assert generate(model, tokenizer, read + asked, max_tokens=8) in out


def test_benchmark(default_folder):
    flags = ["-p", "64", "-g", "8", "-n", "1"]
    assert "Averages: prompt_tps=" in mlx_lm("benchmark", default_folder, *flags)


def test_convert(default_folder, tmp_path):
    """4 bits for the base; the memory and what it remembers with stay as they were."""
    import mlx.core as mx

    new = tmp_path / "new"
    mlx_lm("convert", default_folder, "--mlx-path", new, "-q", "--q-group-size", "32")
    old, weights = (
        mx.load(str(folder / "model.safetensors")) for folder in (default_folder, new)
    )
    memory = {name for name in old if ".memory." in name or name.endswith(".alpha")}
    assert len(memory) == 11 * 12
    for name in memory:
        assert mx.array_equal(old[name], weights[name])
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == mx.uint32
    config = json.loads((new / "config.json").read_text())
    assert config["allmem"]["window"] == 512 and config["quantization"]["bits"] == 4
    out = mlx_lm("generate", new, "--prompt", "2 + 2 =", "-m", "2")
    assert "Generation: 2 tokens" in out
