"""Conversion: from a folder, quantised, and everything refused."""

import json
import shutil

import mlx.core as mx
import pytest
from helpers import (
    assert_close,
    assert_refused,
    random_tokens,
    tiny_base_folder,
    transformers_logits,
    transformers_model,
)
from mlx.utils import tree_flatten
from processes import ROOT, run

from allmem_mlx import load
from allmem_mlx.convert import convert
from allmem_mlx.errors import AllMemError, SettingError
from allmem_mlx.variants import base_model

SIZES = {"window": 48, "sinks": 4, "chunk": 64}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return tiny_base_folder(folder, request.param)


def test_a_hugging_face_folder(base_folder, tmp_path):
    convert(base_folder, tmp_path / "new", **SIZES)
    model, tokenizer = load(tmp_path / "new")
    tokens = random_tokens(1, 52)
    assert_close(
        "logits",
        model(tokens),
        transformers_logits(transformers_model(base_folder), tokens),
        1e-5,
    )
    config = model.allmem
    assert (config.window, config.sinks, config.chunk) == (48, 4, 64)
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
    assert tokenizer.has_chat_template
    assert "window of 48 tokens" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_settings_are_carried_over(tmp_path, rope):
    base = tiny_base_folder(tmp_path / "base", "llama", rope_parameters=rope)
    convert(base, tmp_path / "new", **SIZES)
    tokens = random_tokens(1, 52)
    expected = transformers_logits(transformers_model(base), tokens)
    assert_close("logits", load(tmp_path / "new")[0](tokens), expected, 1e-5)


def test_the_same_folder_twice_is_the_same_model(base_folder, tmp_path):
    for name in ("one", "two"):
        convert(base_folder, tmp_path / name, **SIZES)
    one, two = (
        mx.load(str(tmp_path / name / "model.safetensors")) for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(mx.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_base_s_and_the_memory_keeps_its_own(base_folder, tmp_path, dtype):
    convert(base_folder, tmp_path / "new", dtype=dtype, **SIZES)
    model, _ = load(tmp_path / "new")
    kept = ("alpha", "_norm.weight", "rate_bias", "w0_gate", "w0_up", "w0_down")
    for name, x in tree_flatten(model.parameters()):
        own = ".memory." in name or name.endswith("alpha")
        float32 = own and name.endswith(kept)
        assert x.dtype == (mx.float32 if float32 else getattr(mx, dtype)), name
    assert model(random_tokens(1, 200)).dtype == getattr(mx, dtype)


def test_quantised(base_folder, tmp_path):
    convert(base_folder, tmp_path / "new", quantize=True, q_bits=8, q_group_size=32)
    model, _ = load(tmp_path / "new")
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert "model.layers.0.self_attn.q_proj.scales" in names
    assert not any("memory" in name and "scales" in name for name in names)
    tokens = random_tokens(1, 52)
    expected = base_model(model)(tokens)
    assert mx.array_equal(model(tokens), expected)
    assert_close(
        "8 bits",
        expected,
        transformers_logits(transformers_model(base_folder), tokens),
        0.1,
    )


def test_quantising_does_not_need_room_for_the_base(tmp_path):
    """Its weights are read one after the other: a model may be larger than memory."""
    base = tiny_base_folder(
        tmp_path / "base",
        "qwen3",
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=16,
    )
    size = (base / "model.safetensors").stat().st_size
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    convert(base, tmp_path / "new", quantize=True)
    assert mx.get_peak_memory() - before < 0.6 * size


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_quantised_by_mode(base_folder, tmp_path, mode):
    convert(base_folder, tmp_path / "new", quantize=True, q_mode=mode, **SIZES)
    model, _ = load(tmp_path / "new")
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert "model.layers.0.mlp.up_proj.scales" in names
    assert not any("memory" in name and "scales" in name for name in names)
    tokens = random_tokens(1, 52)
    assert mx.array_equal(model(tokens), base_model(model)(tokens))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"q_bits": 7}, "bits 7 is not supported"),
        ({"q_mode": "mxfp4", "q_bits": 8}, "requires bits to be 4"),
        ({"q_group_size": 48}, "multiple of the group size, 48"),
    ],
)
def test_impossible_quantisation(qwen3_folder, tmp_path, options, words):
    with pytest.raises(SettingError, match=f"^-q: .*{words}"):
        convert(qwen3_folder, tmp_path / "new", quantize=True, **options)
    assert not any(tmp_path.iterdir())


def test_a_quantised_base(base_folder, tmp_path):
    """An mlx-lm folder of 4 bits converts as it is, and is not quantised again."""
    from mlx_lm.convert import convert as mlx_lm_convert

    quantised = tmp_path / "quantised"
    mlx_lm_convert(str(base_folder), str(quantised), quantize=True, q_group_size=32)
    convert(quantised, tmp_path / "new", **SIZES)
    model, _ = load(tmp_path / "new")
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert sum("scales" in name for name in names) == 15  # 7 in a layer, and one
    assert mx.array_equal(
        model(random_tokens(1, 52)), base_model(model)(random_tokens(1, 52))
    )
    with pytest.raises(AllMemError, match="quantised already"):
        convert(quantised, tmp_path / "again", quantize=True)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    return tiny_base_folder(tmp_path_factory.mktemp("qwen3"), "qwen3")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def edited(path, **changed):
    config = json.loads(path.read_text()) | changed
    path.write_text(json.dumps(config))


# What is done to a good folder, and what the message must name.
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json"]),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json"]),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        ["model*.safetensors"],
    ),
    "truncated weights": (
        lambda f: truncated(f / "model.safetensors"),
        ["model.safetensors", "incomplete"],
    ),
    "text as weights": (
        lambda f: (f / "model.safetensors").write_text("hello"),
        ["model.safetensors", "damaged"],
    ),
    "a layer too many": (
        lambda f: edited(
            f / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3
        ),
        ["do not fit", "layers.2"],
    ),
    "another width": (
        lambda f: edited(f / "config.json", intermediate_size=64),
        ["do not fit"],
    ),
    "no hidden_size": (
        lambda f: edited(f / "config.json", hidden_size="wide"),
        ["hidden_size"],
    ),
    "no tokenizer": (
        lambda f: [
            (f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")
        ],
        ["no tokenizer"],
    ),
    "tokenizer not JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        ["the tokenizer cannot be read"],
    ),
    "another family": (
        lambda f: edited(f / "config.json", model_type="gpt_neox"),
        ["'gpt_neox'", "qwen2, qwen2_moe, qwen3"],
    ),
    "a rotary embedding that depends on the length": (
        lambda f: edited(
            f / "config.json", rope_parameters={"rope_type": "dynamic", "factor": 4.0}
        ),
        ["'dynamic'"],
    ),
    "already converted": (
        lambda f: edited(f / "config.json", model_type="allmem"),
        ["already"],
    ),
}


@pytest.mark.parametrize("damage, words", DAMAGE.values(), ids=DAMAGE)
def test_refused_folder(qwen3_folder, tmp_path, damage, words):
    shutil.copytree(qwen3_folder, tmp_path / "base")
    damage(tmp_path / "base")
    with pytest.raises(AllMemError) as error:
        convert(tmp_path / "base", tmp_path / "new")
    for word in [tmp_path / "base", *words]:
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_refused_commands(qwen3_folder, tmp_path):
    new = tmp_path / "new"
    to = ["--mlx-path", new]
    base = ["--hf-path", qwen3_folder]
    refused = [
        ([*to], 2, ["--hf-path", "--gguf"]),
        (["--hf-path", tmp_path / "nowhere", *to], 1, ["nowhere", "no such"]),
        (["--gguf", tmp_path / "nowhere", *to], 1, ["nowhere", "no such"]),
        (["--gguf", ROOT / "LICENSE", *to], 1, ["LICENSE", "not a GGUF file"]),
        ([*base, "--mlx-path", tmp_path], 1, [tmp_path, "already exists"]),
        ([*base, *to, "--window", "0"], 2, ["window"]),
        ([*base, *to, "--sinks", "-1"], 2, ["sinks"]),
        ([*base, *to, "--chunk", "100"], 2, ["chunk", "fold"]),
        ([*base, *to, "--q-bits", "4"], 2, ["-q"]),
    ]
    for flags, code, words in refused:
        assert_refused(run("convert", *flags), code, *words)
    assert not any(tmp_path.iterdir())


def test_the_command(qwen3_folder, tmp_path):
    """As `python -m convert` in a checkout and as an installed module."""
    for name in ("convert", "allmem_mlx.convert"):
        result = run(name, "--hf-path", qwen3_folder, "--mlx-path", tmp_path / name)
        assert result.returncode == 0, result.stderr
        load(tmp_path / name)


def test_the_form_of_the_memory(qwen3_folder, tmp_path):
    form = {
        "heads": 1,
        "head_dim": 32,
        "hidden_dim": 64,
        "learning_rate": 0.01,
        "values": "token",
        "updates": "down",
    }
    flags = [
        x
        for name, value in form.items()
        for x in ("--" + name.replace("_", "-"), value)
    ]
    form["layers"] = [0, -1]
    flags += ["--layers", 0, -1]
    result = run(
        "convert", "--hf-path", qwen3_folder, "--mlx-path", tmp_path / "new", *flags
    )
    assert result.returncode == 0, result.stderr
    model, _ = load(tmp_path / "new")
    assert {name: getattr(model.allmem, name) for name in form} == form


def test_a_full_disk_leaves_nothing(qwen3_folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("[write] Unable to write 18827 bytes to file.")

    monkeypatch.setattr("mlx_lm.utils.save_model", full)
    with pytest.raises(AllMemError, match="cannot be written: .*Unable to write"):
        convert(qwen3_folder, tmp_path / "new")
    assert not any(tmp_path.iterdir())


def test_impossible_settings(qwen3_folder, tmp_path):
    with pytest.raises(SettingError, match="window"):
        convert(qwen3_folder, tmp_path / "new", window=0)
    assert not any(tmp_path.iterdir())
