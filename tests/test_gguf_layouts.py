"""GGUF files of one model that differ: what other programs and other versions of
llama.cpp's converter write."""

import json

import gguf as ggml
import mlx.core as mx
import numpy as np
import pytest
from family_cases import complete, save_family
from gguf_cases import CASES
from gguf_files import (
    architecture_of,
    model_metadata,
    model_tensors,
    save_gguf,
    tokenizer_metadata,
    write_gguf,
)
from helpers import (
    assert_close,
    random_tokens,
    transformers_logits,
    transformers_model,
)
from processes import alone, peak
from transformers import AutoConfig

from allmem_mlx import load
from allmem_mlx.convert import convert, gguf
from allmem_mlx.convert.gguf import weights
from allmem_mlx.convert.gguf.file import read_header
from allmem_mlx.errors import AllMemError


class Model:
    """A case's folder and the tensors of its file."""

    def __init__(self, folder, name):
        family, changed = CASES[name]
        self.base = save_family(folder / "base", family, complete(changed))
        self.config = AutoConfig.from_pretrained(self.base).to_dict()
        self.tensors = model_tensors(self.base, self.config)
        self.architecture = architecture_of(self.config)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Model(tmp_path_factory.mktemp("case"), name)
        return made[name]

    return get


def unpacked(path):
    folder = path.with_suffix(".unpacked")
    folder.mkdir()
    left_out = gguf.unpack(path, folder)
    return mx.load(str(folder / "model.safetensors")), left_out


def assert_same(model, path, tensors, **changed):
    """A file with other tensors unpacks to the same parameters."""
    metadata = model_metadata(model.config) | tokenizer_metadata(model.base)
    write_gguf(path, metadata | changed, tensors)
    actual, left_out = unpacked(path)
    save_gguf(model.base, path.with_name("plain.gguf"))
    expected, _ = unpacked(path.with_name("plain.gguf"))
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert mx.array_equal(actual[name], x), name
    return left_out


@pytest.mark.parametrize(
    "name",
    ["qwen2_moe", "ernie4_5_moe", "granitemoehybrid, dense", "qwen3_next"],
)
def test_dimensions_of_one(models, tmp_path, name):
    """llama.cpp's own writer, which every quantised file comes from, leaves out the
    first sizes that are 1."""
    model = models(name)
    squeezed = {}
    for key, x in model.tensors.items():
        while x.ndim > 1 and len(x) == 1:
            x = x[0]
        squeezed[key] = x
    assert any(squeezed[key].shape != x.shape for key, x in model.tensors.items())
    assert_same(model, tmp_path / "tiny.gguf", squeezed)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_moe",
        "qwen3_5_moe",
        "mixtral",
        "granitemoe",
        "lfm2_moe",
        "gemma4, experts",
    ],
)
def test_experts_together_or_apart(models, tmp_path, name):
    """Gates and inputs of experts in one tensor, or in two."""
    model = models(name)
    tensors = dict(model.tensors)
    for key in model.tensors:
        if key.endswith("ffn_gate_exps.weight"):
            up = key.replace("ffn_gate", "ffn_up")
            together = np.concatenate([tensors.pop(key), tensors.pop(up)], axis=1)
            tensors[key.replace("ffn_gate", "ffn_gate_up")] = together
        if key.endswith("ffn_gate_up_exps.weight"):
            gate, up = np.split(tensors.pop(key), 2, axis=1)
            tensors[key.replace("ffn_gate_up", "ffn_up")] = up
            tensors[key.replace("ffn_gate_up", "ffn_gate")] = gate
    assert tensors.keys() != model.tensors.keys()
    assert_same(model, tmp_path / "tiny.gguf", tensors)


@pytest.mark.parametrize(
    "name",
    [
        *("qwen3_5_moe", "qwen3_next", "gpt_oss", "gemma4, experts"),
        *("granitemoehybrid", "granitemoehybrid, dense"),
    ],
)
def test_the_order_of_tensors(models, tmp_path, name):
    """Those of one parameter may come in any."""
    model = models(name)
    tensors = {"token_embd.weight": model.tensors["token_embd.weight"]}
    tensors |= dict(reversed(model.tensors.items()))
    assert_same(model, tmp_path / "tiny.gguf", tensors)


def test_old_files_of_qwen3_next(models, tmp_path):
    """Their projections are those of transformers."""
    model = models("qwen3_next")
    tensors = dict(model.tensors)
    weights = mx.load(str(model.base / "model.safetensors"))
    for key in model.tensors:
        if key.endswith("attn_qkv.weight"):
            tensors.pop(key), tensors.pop(key.replace("qkv", "gate"))
            layer = key.split(".")[1]
            x = weights[f"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"]
            tensors[f"blk.{layer}.ssm_in.weight"] = np.array(x)
    assert_same(model, tmp_path / "tiny.gguf", tensors)


@pytest.mark.parametrize("name", ["qwen3_5", "glm4_moe"])
def test_layers_that_predict_further_tokens(models, tmp_path, name):
    """They are left out, and the names of their tensors returned."""
    model = models(name)
    count = model.config["num_hidden_layers"]
    extra = {
        f"blk.{count}.nextn.eh_proj.weight": np.ones((64, 128), np.float32),
        f"blk.{count}.attn_norm.weight": np.ones(64, np.float32),
    }
    keys = {"block_count": count + 1, "nextn_predict_layers": 1}
    changed = {f"{model.architecture}.{key}": value for key, value in keys.items()}
    path = tmp_path / "tiny.gguf"
    left_out = assert_same(model, path, {**model.tensors, **extra}, **changed)
    assert sorted(left_out) == sorted(extra)
    if name == "qwen3_5":
        convert(path, tmp_path / "new", window=96, sinks=4, chunk=64)
        tokens = random_tokens(1, 80)
        expected = transformers_logits(transformers_model(model.base), tokens)
        assert_close("logits", load(tmp_path / "new")[0](tokens), expected, 2e-5)


def test_a_recurrent_layer_s_attention(models, tmp_path):
    """Whether a layer is recurrent follows from its tensors, whatever the period."""
    model = models("qwen3_5")
    changed = {"qwen35.full_attention_interval": 3}
    save_gguf(model.base, tmp_path / "tiny.gguf", **changed)
    unpacked(tmp_path / "tiny.gguf")
    folder = tmp_path / "tiny.unpacked"
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_types"] == model.config["layer_types"]


def test_the_families_that_overflow(models, tmp_path):
    """A quantised file of theirs becomes bfloat16."""
    model = models("gpt_oss")
    kind = ggml.GGMLQuantizationType.F16
    embedding = model.tensors["token_embd.weight"].astype(np.float16)
    tensors = {"token_embd.weight": (embedding.view(np.uint8), kind)}
    save_gguf(model.base, tmp_path / "tiny.gguf", tensors)
    arrays, _ = unpacked(tmp_path / "tiny.gguf")
    assert {x.dtype for x in arrays.values()} == {mx.bfloat16}


def mxfp4(model) -> dict[str, tuple[np.ndarray, ggml.GGMLQuantizationType]]:
    """A model's experts as gpt-oss is published."""
    kind = ggml.GGMLQuantizationType.MXFP4
    return {
        key: (ggml.quantize(x, kind), kind)
        for key, x in model.tensors.items()
        if key.endswith("exps.weight")
    }


def test_packed_experts_of_gpt_oss(models, tmp_path):
    """They stay as they are, in transformers' layout."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model, path = models("gpt_oss"), tmp_path / "tiny.gguf"
    experts = mxfp4(model)
    save_gguf(model.base, path, experts)
    actual, _ = unpacked(path)
    values = {key: ggml.dequantize(*x) for key, x in experts.items()}
    save_gguf(model.base, tmp_path / "plain.gguf", values)
    plain, _ = unpacked(tmp_path / "plain.gguf")
    for name in [x for x in plain if x.endswith(("gate_up_proj", "down_proj"))]:
        parts = [np.array(actual[f"{name}_{kind}"]) for kind in ("blocks", "scales")]
        x = convert_moe_packed_tensors(*map(torch.tensor, parts), dtype=torch.float32)
        assert np.array_equal(x.numpy(), plain.pop(name)), name
    assert all(mx.array_equal(actual[name], x) for name, x in plain.items())

    convert(path, tmp_path / "new", window=96, sinks=4, chunk=64)
    hybrid, _, config = load(tmp_path / "new", return_config=True)
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    tokens = random_tokens(1, 80)
    folder = tmp_path / "plain.unpacked"
    expected = transformers_logits(transformers_model(folder), tokens)
    assert_close("logits", hybrid(tokens), expected, 1e-5)


def test_experts_that_are_not_all_packed(models, tmp_path):
    """Are all unpacked."""
    model = models("gpt_oss")
    experts = mxfp4(model)
    experts.pop("blk.1.ffn_up_exps.weight")
    save_gguf(model.base, tmp_path / "tiny.gguf", experts)
    arrays, _ = unpacked(tmp_path / "tiny.gguf")
    assert not any(name.endswith("_blocks") for name in arrays)
    config = (tmp_path / "tiny.unpacked" / "config.json").read_text()
    assert "mxfp4" not in config


def test_batches_of_any_size(models, tmp_path, monkeypatch):
    """Rows of experts, of heads and of halves, a few at a time or all at once."""
    for name in ("gpt_oss", "qwen3_5_moe"):
        path = tmp_path / f"{name}.gguf"
        save_gguf(models(name).base, path)
        expected, _ = unpacked(path)
        for size in (700, 5000):
            monkeypatch.setattr(weights, "BATCH", size)
            copy = path.rename(path.with_name(f"{name}-{size}.gguf"))
            actual, _ = unpacked(copy)
            copy.rename(path)
            assert all(mx.array_equal(actual[key], x) for key, x in expected.items())
        monkeypatch.undo()


@pytest.mark.parametrize("group, size", [(1, 40), (1, 8), (2, 50), (6, 8), (6, 100)])
def test_batches_are_bounded(models, tmp_path, monkeypatch, group, size):
    """However the rows lie in the file."""
    save_gguf(models("qwen3_moe").base, tmp_path / "tiny.gguf")
    _, tensors = read_header(tmp_path / "tiny.gguf")
    tensor = tensors["blk.0.attn_q.weight"]
    places = [(0, 3), (40, 41), (10, 25), (3, 4), (4, 8)]
    rows = tuple(weights.Rows(tensor, *place) for place in places)
    monkeypatch.setattr(weights, "BATCH", size * tensor.columns)
    batches = [*weights.Weight("x", (24, 64), rows, group).batches()]
    assert all(len(x) <= max(size // group, 1) * group for x in batches)
    assert all(len(x) % group == 0 for x in batches)
    x = tensor.read(0, tensor.rows)
    expected = np.concatenate([x[start:stop] for start, stop in places])
    assert np.array_equal(np.concatenate(batches), expected)


def growth(path, folder) -> int:
    """What unpacking adds to the size of a process."""
    mx.eval(mx.zeros(1))
    before = peak()
    gguf.unpack(path, folder, "float32")
    return peak() - before


@pytest.mark.slow
def test_memory(models, tmp_path):
    """Many experts in one tensor take no more memory than a few."""
    model, path, count = models("gpt_oss"), tmp_path / "large.gguf", 128
    tensors = {}
    for key, x in model.tensors.items():
        if "exps.weight" in key:
            height, width = (512, 128) if "down" in key else (128, 512)
            tensors[key] = np.zeros((count, height, width), np.float16)
        elif "exps.bias" in key:
            size = 512 if "down" in key else 128
            tensors[key] = np.zeros((count, size), x.dtype)
    changed = {f"{model.architecture}.expert_count": count}
    save_gguf(model.base, path, tensors, **changed)
    del tensors
    (tmp_path / "new").mkdir()
    needed = alone(growth, path, tmp_path / "new")
    written = (tmp_path / "new" / "model.safetensors").stat().st_size
    assert written > 300e6  # of float32
    assert needed < 200e6


@pytest.mark.parametrize(
    "name, key, change, words",
    [
        ("qwen3_moe", "ffn_up_exps.weight", lambda x: x[0], ["(32, 64)", "not fit"]),
        ("qwen3_moe", "ffn_down_exps.weight", lambda x: x[:3], ["(3, 64, 32)"]),
        ("qwen3_5_moe", "ffn_up_exps.weight", lambda x: x[:, :16], ["(4, 16, 64)"]),
        ("qwen3_5_moe", "ffn_up_exps.weight", None, ["no tensor blk.0.ffn_up_exps"]),
        ("gpt_oss", "ffn_up_exps.bias", lambda x: x[:, :8], ["(4, 8)", "not fit"]),
        ("gpt_oss", "ffn_gate_exps.weight", None, ["blk.0.ffn_up_exps", "supported"]),
        ("qwen3_5", "attn_qkv.weight", lambda x: x[:-16], ["attn_qkv", "not fit"]),
        ("qwen3_5", "ssm_a", lambda x: -x, ["ssm_a", "above 0", "damaged"]),
        ("qwen3_5", "ssm_a", lambda x: x[:-1], ["ssm_a", "(5,)"]),
        ("qwen3_5", "ssm_out.weight", lambda x: x[:, :32], ["ssm_out", "(64, 32)"]),
        ("qwen3_next", "attn_gate.weight", None, ["no tensor blk.0.attn_gate"]),
        ("granitemoehybrid", "ssm_a", lambda x: 0 * x, ["ssm_a", "above 0"]),
        ("nemotron_h", "ssm_a", None, ["a layer is of no known kind"]),
    ],
    ids=lambda x: "changed" if callable(x) else str(x),
)
def test_refused_tensors(models, tmp_path, name, key, change, words):
    model = models(name)
    key = f"blk.0.{key}"
    x = None if change is None else np.ascontiguousarray(change(model.tensors[key]))
    save_gguf(model.base, tmp_path / "tiny.gguf", {key: x})
    with pytest.raises(AllMemError) as error:
        convert(tmp_path / "tiny.gguf", tmp_path / "new")
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    "name, changed, words",
    [
        ("qwen3_moe", {"expert_used_count": 9}, ["9 of 4 experts"]),
        ("qwen3_moe", {"expert_feed_forward_length": None}, ["expert_feed_forward"]),
        ("qwen3_moe", {"expert_gating_func": 2}, ["expert_gating_func = 2"]),
        ("lfm2_moe", {"expert_gating_func": 1}, ["expert_gating_func = 1"]),
        ("gpt_oss", {"expert_gating_func": 2}, ["expert_gating_func = 2"]),
        ("qwen3_5", {"ssm.time_step_rank": 5}, ["2 heads of keys and 5 of values"]),
        ("qwen3_5", {"ssm.group_count": 0}, ["0 heads of keys"]),
        ("granitemoehybrid", {"ssm.inner_size": 100}, ["ssm.inner_size 100"]),
        ("falcon_h1", {"ssm.conv_kernel": "x"}, ["ssm.conv_kernel"]),
        ("gemma4", {"attention.shared_kv_layers": 6}, ["shared_kv_layers is 6"]),
        ("gemma4", {"rope.dimension_count": 16}, ["partial RoPE"]),
        ("gemma4", {"rope.dimension_count_swa": 8}, ["dimension_count_swa 8 of 16"]),
        ("gemma4", {"attention.value_length_swa": 8}, ["another size than keys"]),
        ("gemma4", {"attention.sliding_window_pattern": [True] * 6}, ["global layers"]),
        ("gemma4", {"feed_forward_length": [128] * 3 + [300] * 3}, ["128 and 300"]),
        ("gemma4, experts", {"attention.head_count_kv": [1, 2] * 3}, ["[1, 2, 1"]),
        ("lfm2", {"attention.head_count_kv": [0, 2, 4]}, ["different sizes"]),
    ],
    ids=str,
)
def test_refused_settings(models, tmp_path, name, changed, words):
    model = models(name)
    changed = {f"{model.architecture}.{key}": x for key, x in changed.items()}
    save_gguf(model.base, tmp_path / "tiny.gguf", **changed)
    with pytest.raises(AllMemError) as error:
        convert(tmp_path / "tiny.gguf", tmp_path / "new")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_of_falcon_h1_that_is_lost(models, tmp_path):
    model = models("falcon_h1")
    save_gguf(model.base, tmp_path / "tiny.gguf", {"output.weight": None})
    with pytest.raises(AllMemError, match="falcon-h1 without a head of its own"):
        convert(tmp_path / "tiny.gguf", tmp_path / "new")


@pytest.mark.parametrize(
    "change", [lambda x: x * 2, lambda x: x[::-1], lambda x: x[:-1]]
)
def test_other_factors_of_gemma4(models, tmp_path, change):
    model = models("gemma4")
    factors = model.tensors["rope_freqs.weight"]
    tensors = {"rope_freqs.weight": change(factors).copy()}
    save_gguf(model.base, tmp_path / "tiny.gguf", tensors)
    with pytest.raises(AllMemError, match="rope_freqs.weight"):
        convert(tmp_path / "tiny.gguf", tmp_path / "new")
