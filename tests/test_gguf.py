"""GGUF: every family, type of tensor and tokenizer, and everything refused."""

import json

import gguf as ggml
import mlx.core as mx
import numpy as np
import pytest
from family_cases import complete, save_family, theta
from gguf_cases import CASES
from gguf_files import llama3_factors, save_gguf
from helpers import (
    assert_close,
    random_tokens,
    tiny_base_folder,
    transformers_logits,
    transformers_model,
)
from llama_cpp import LlamaCpp
from processes import ROOT, alone, peak

from allmem_mlx import load
from allmem_mlx.convert import convert, gguf
from allmem_mlx.convert.gguf import weights
from allmem_mlx.convert.gguf.families import ARCHITECTURES
from allmem_mlx.convert.gguf.file import read_header
from allmem_mlx.convert.gguf.pre_tokenizers import PRE_TOKENIZERS
from allmem_mlx.errors import AllMemError

SIZES = {"window": 96, "sinks": 4, "chunk": 64}


def assert_same_weights(actual, expected) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert_close(name, actual[name], x, 1e-6)


def unpacked(path, dtype=None):
    folder = path.with_suffix(".unpacked")
    folder.mkdir()
    gguf.unpack(path, folder, dtype)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of the cases, made when they are asked for."""
    made = {}

    def get(name):
        if name not in made:
            family, changed = CASES[name]
            folder = tmp_path_factory.mktemp("checkpoint") / "base"
            made[name] = save_family(folder, family, complete(changed))
        return made[name]

    return get


# Those of one are multiplied; the other becomes granite, which computes the same.
OTHER_WEIGHTS = ("falcon_h1", "granitemoehybrid, attention alone")


@pytest.mark.parametrize("name", CASES)
def test_a_family(checkpoints, tmp_path, name):
    """transformers reads the unpacked folder as it reads the original, and the hybrid
    computes the same."""
    base, path = checkpoints(name), tmp_path / "tiny.gguf"
    save_gguf(base, path)
    original = transformers_model(base)
    read = transformers_model(unpacked(path))
    if name not in OTHER_WEIGHTS:
        assert_same_weights(read, original)
    # Nothing leaves the hybrid's window, which is not larger than the base's.
    window = 48 if name == "phi3, sliding" else 96
    tokens = random_tokens(1, window - 16)
    expected = transformers_logits(original, tokens)
    assert_close("logits", transformers_logits(read, tokens), expected, 3e-6)

    convert(path, tmp_path / "new", window=window, sinks=4, chunk=64)
    model, _ = load(tmp_path / "new")
    assert_close("logits", model(tokens), expected, 2e-5)


# Cases that llama.cpp cannot read, or computes otherwise than transformers.
NOT_IN_LLAMA_CPP = {
    *("cohere", "ernie4_5", "seed_oss"),  # biases, norms of heads
    *("olmo2", "olmo3"),  # a head that is the embedding
    *("exaone4", "phi3, sliding"),  # windows
    "gpt_oss, yarn",  # whose bounds it rounds
}
GELU = ("gemma", "phi", "starcoder2")  # it has a table in float16


@pytest.mark.parametrize("name", [x for x in CASES if x not in NOT_IN_LLAMA_CPP])
def test_llama_cpp_computes_the_same(checkpoints, tmp_path, name):
    """The files of these tests are such that llama.cpp computes of them what
    transformers computes of the folder."""
    pytest.importorskip("xllamacpp")
    base, path = checkpoints(name), tmp_path / "tiny.gguf"
    save_gguf(base, path)
    tokens = random_tokens(1, 80)
    logits = transformers_logits(transformers_model(base), tokens)[0, -1]
    expected = logits - np.log(np.exp(logits).sum())
    actual = LlamaCpp(path).log_probabilities(tokens[0].tolist(), len(logits))
    tolerance = 2e-2 if name.startswith(GELU) else 1e-4
    assert np.abs(actual - expected).max() < tolerance


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "starcoder2", "stablelm"],
)
def test_transformers_reads_the_same_weights(checkpoints, tmp_path, name):
    """Its own reader of GGUF, which does not know all settings but all tensors."""
    from transformers import AutoConfig

    path = tmp_path / "tiny.gguf"
    save_gguf(checkpoints(name), path, **{"general.name": "tiny"})
    config = AutoConfig.from_pretrained(checkpoints(name))
    expected = transformers_model(tmp_path, gguf_file=path.name, config=config)
    assert_same_weights(transformers_model(unpacked(path)), expected)


KINDS = [
    kind
    for kind in ggml.GGMLQuantizationType
    if kind.name not in ("Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64", "F64")
]


def random_rows(kind, rows, columns, seed=0):
    """Bytes that stand for moderate values in every type: as half a float16 or as an
    exponent they are small."""
    values, size = ggml.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 0x3C, (rows, columns // values * size), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_type_of_tensor(tmp_path, kind):
    """As the gguf package reads it, and that reads the header by itself too."""
    base = tiny_base_folder(tmp_path / "base", "qwen3", hidden_size=256)
    path, name = tmp_path / "tiny.gguf", "blk.1.ffn_gate.weight"
    save_gguf(base, path, {name: (random_rows(kind, 128, 256), kind)})
    (tensor,) = (t for t in ggml.GGUFReader(path).tensors if t.name == name)
    expected = ggml.dequantize(tensor.data, kind)
    assert expected.shape == (128, 256) and np.abs(expected).max() > 0
    folder = unpacked(path, "float32")
    actual = mx.load(str(folder / "model.safetensors"))
    x = actual["model.layers.1.mlp.gate_proj.weight"]
    assert np.array_equal(np.array(x), expected)


def test_a_type_that_is_not_read(tmp_path):
    base = tiny_base_folder(tmp_path / "base", "qwen3", hidden_size=256)
    kind = ggml.GGMLQuantizationType.Q8_K
    tensor = (random_rows(kind, 128, 256), kind)
    path = tmp_path / "tiny.gguf"
    save_gguf(base, path, {"blk.1.ffn_gate.weight": tensor})
    with pytest.raises(AllMemError, match="blk.1.ffn_gate.weight is of type Q8_K"):
        convert(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_type_of_value(tmp_path):
    """The header as the gguf package reads it."""
    kinds = ggml.GGUFValueType
    writer = ggml.GGUFWriter(tmp_path / "values.gguf", "llama")
    numbers = {
        kinds.UINT8: 255,
        kinds.INT8: -128,
        kinds.UINT16: 65535,
        kinds.INT16: -32768,
        kinds.UINT32: 2**32 - 1,
        kinds.INT32: -(2**31),
        kinds.UINT64: 2**64 - 1,
        kinds.INT64: -(2**63),
        kinds.FLOAT32: 1.5,
        kinds.FLOAT64: 1e300,
        kinds.BOOL: True,
    }
    for kind, x in numbers.items():
        writer.add_key_value(f"x.{kind.name}", x, kind)
    writer.add_string("x.text", "zażółć 🚀")
    writer.add_array("x.texts", ["", "a\x00b", "▁"])
    writer.add_array("x.floats", [1.5, -2.0])
    writer.add_array("x.truths", [True, False])
    writer.add_float32("x.eps", 1e-6)
    writer.add_tensor("x.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = read_header(tmp_path / "values.gguf")
    reader = ggml.GGUFReader(tmp_path / "values.gguf")
    fields = {k: f.contents() for k, f in reader.fields.items() if k[:4] != "GGUF"}
    assert fields.pop("x.eps") != 1e-6 == metadata.values.pop("x.eps")
    assert metadata.values == fields
    tensor = tensors["x.weight"]
    assert np.array_equal(tensor.read(1, 3), [[4, 5, 6, 7], [8, 9, 10, 11]])


@pytest.mark.parametrize(
    "kind, dtype",
    [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float16")],
)
def test_the_type_of_weights(tmp_path, kind, dtype):
    base = tiny_base_folder(tmp_path / "base", "qwen3")
    kind = ggml.GGMLQuantizationType[kind]
    embedding = (random_rows(kind, 128, 64), kind)
    save_gguf(base, tmp_path / "tiny.gguf", {"token_embd.weight": embedding})
    convert(tmp_path / "tiny.gguf", tmp_path / "new", **SIZES)
    model, _, config = load(tmp_path / "new", return_config=True)
    assert config["torch_dtype"] == dtype
    assert model.dtype == getattr(mx, dtype)


def test_a_family_that_overflows(checkpoints, tmp_path):
    path, kind = tmp_path / "tiny.gguf", ggml.GGMLQuantizationType.F16
    embedding = (random_rows(kind, 128, 40), kind)
    save_gguf(checkpoints("gemma3"), path, {"token_embd.weight": embedding})
    config = json.loads((unpacked(path) / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_a_value_that_does_not_fit(tmp_path):
    base = tiny_base_folder(tmp_path / "base", "qwen3")
    norm = np.full(64, 70000.0, np.float32)
    save_gguf(base, tmp_path / "tiny.gguf", {"output_norm.weight": norm})
    with pytest.raises(AllMemError, match="output_norm.*--dtype bfloat16"):
        convert(tmp_path / "tiny.gguf", tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new").exists()


def test_shards(checkpoints, tmp_path, monkeypatch):
    """A large model becomes numbered files with an index."""
    base, path = checkpoints("llama"), tmp_path / "tiny.gguf"
    save_gguf(base, path)
    monkeypatch.setattr(weights, "SHARD", 100_000)
    monkeypatch.setattr(weights, "BATCH", 700)
    folder = unpacked(path)
    files = sorted(file.name for file in folder.glob("model*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert_same_weights(transformers_model(folder), transformers_model(base))
    convert(path, tmp_path / "new", **SIZES)
    tokens = random_tokens(1, 50)
    expected = transformers_logits(transformers_model(base), tokens)
    assert_close("logits", load(tmp_path / "new")[0](tokens), expected, 1e-5)


def growth(path, folder) -> int:
    """What unpacking adds to the size of a process."""
    mx.eval(mx.zeros(1))
    before = peak()
    gguf.unpack(path, folder, "float32")
    return peak() - before


def test_memory(tmp_path):
    """What unpacking takes does not depend on the model, nor on a tensor of it.

    The peak is that of the process, which reads the file and does not map it.
    """
    rows, kind = 1_000_000, ggml.GGMLQuantizationType.Q4_0
    base = tiny_base_folder(tmp_path / "base", "qwen3")
    embedding = (np.zeros((rows, 36), np.uint8), kind)
    path = tmp_path / "large.gguf"
    save_gguf(base, path, {"token_embd.weight": embedding})
    del embedding
    (tmp_path / "new").mkdir()
    needed = alone(growth, path, tmp_path / "new")
    written = (tmp_path / "new" / "model.safetensors").stat().st_size
    assert written > 256e6  # of float32, in one tensor
    assert needed < 200e6


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "size, changed",
    [(128, {}), (64, {"factor": 32.0}), (128, {"factor": 16.0}), (80, {})],
)
def test_llama3_settings_are_recovered(tmp_path, size, changed):
    rope = LLAMA31 | changed
    base = tiny_base_folder(
        tmp_path / "base", "llama", head_dim=size, rope_parameters=rope
    )
    save_gguf(base, tmp_path / "tiny.gguf")
    config = json.loads((unpacked(tmp_path / "tiny.gguf") / "config.json").read_text())
    assert config["rope_parameters"] == rope


def test_other_factors_are_refused(tmp_path):
    base = tiny_base_folder(tmp_path / "base", "llama", rope_parameters=theta(5e5))
    for change in (lambda x: x**2, lambda x: x[::-1], lambda x: x[:-1]):
        factors = change(llama3_factors(LLAMA31, 16)).copy()
        path = tmp_path / "tiny.gguf"
        save_gguf(base, path, {"rope_freqs.weight": factors})
        with pytest.raises(AllMemError, match="rope_freqs.weight"):
            convert(path, tmp_path / "new")
    save_gguf(base, path, {"rope_freqs.weight": np.ones(8, np.float32)})
    convert(path, tmp_path / "new")


def test_mistral_s_window(tmp_path):
    base = tiny_base_folder(tmp_path / "base", "llama")
    path = tmp_path / "tiny.gguf"
    save_gguf(base, path, **{"llama.attention.sliding_window": 48})
    config = json.loads((unpacked(path) / "config.json").read_text())
    assert config["model_type"] == "mistral" and config["sliding_window"] == 48


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"general.architecture": "mamba"}, ["'mamba'", "llama, qwen2, qwen3"]),
        ({"general.architecture": None}, ["general.architecture"]),
        ({"general.type": "adapter"}, ["'adapter'"]),
        ({"split.count": 3}, ["split.no"]),
        ({"split.count": 3, "split.no": 1}, ["part 2 of 3", "NAME-00001-of-00003"]),
        ({"general.alignment": 33}, ["general.alignment"]),
        ({"qwen3.block_count": None}, ["qwen3.block_count"]),
        ({"qwen3.block_count": 5}, ["qwen3.block_count is 5", "2 layers"]),
        ({"qwen3.block_count": 4_000_000_000}, ["4000000000", "2 layers"]),
        ({"qwen3.attention.head_count_kv": [1, 2]}, ["[1, 2]", "different sizes"]),
        ({"qwen3.attention.head_count_kv": [2]}, ["list of 2 whole numbers"]),
        ({"qwen3.attention.head_count_kv": ["2", "2"]}, ["list of 2 whole numbers"]),
        ({"qwen3.feed_forward_length": [64, 128]}, ["feed_forward_length"]),
        ({"qwen3.nextn_predict_layers": 2}, ["2, of 2 layers"]),
        ({"qwen3.attention.layer_norm_rms_epsilon": "x"}, ["a number"]),
        ({"qwen3.attention.value_length": 8}, ["another size than keys"]),
        ({"qwen3.rope.scaling.type": "longrope"}, ["'longrope'"]),
        ({"qwen3.rope.dimension_count": 8}, ["partial RoPE"]),
        ({"qwen3.logit_scale": 2.0}, ["qwen3.logit_scale = 2.0", "not supported"]),
        ({"qwen3.expert_count": 8}, ["qwen3.expert_count = 8"]),
        ({"qwen3.invented": True}, ["qwen3.invented"]),
        ({"tokenizer.ggml.pre": "klingon"}, ["'klingon'", "smollm"]),
        ({"tokenizer.ggml.pre": None}, ["'default'", "smollm"]),
        ({"tokenizer.ggml.model": "rwkv"}, ["'rwkv'", "gpt2, llama"]),
        ({"tokenizer.ggml.tokens": None}, ["tokenizer.ggml.tokens"]),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, ["twice"]),
        ({"tokenizer.ggml.token_type": [1]}, ["1 entries for 128"]),
        ({"tokenizer.ggml.merges": ["abc"]}, ["pairs of tokens"]),
        ({"tokenizer.ggml.merges": ["H ß"]}, ["the tokenizer is damaged"]),
        ({"tokenizer.ggml.eos_token_id": 128}, ["eos_token_id is 128", "128 tokens"]),
        (
            {
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.bos_token_id": None,
            },
            ["needs a bos token"],
        ),
        ({"tokenizer.ggml.invented": 1}, ["tokenizer.ggml.invented"]),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, ["removes spaces"]),
    ],
    ids=str,
)
def test_refused_metadata(checkpoints, tmp_path, changed, words):
    save_gguf(checkpoints("qwen3"), tmp_path / "tiny.gguf", **changed)
    with pytest.raises(AllMemError) as error:
        convert(tmp_path / "tiny.gguf", tmp_path / "new")
    for word in ["tiny.gguf", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"blk.0.ffn_gate_inp.weight": np.ones((4, 64), "f")}, ["ffn_gate_inp"]),
        ({"rope_factors_long.weight": np.ones(8, "f")}, ["longrope"]),
        ({"token_embd.weight": None}, ["token_embd.weight"]),
        ({"token_embd.weight": np.ones((99, 64), "f")}, ["99 rows for 128 tokens"]),
        ({"blk.1.ffn_up.weight": None}, ["do not fit", "layers.1.mlp.up_proj"]),
        ({"blk.1.ffn_up.weight": np.ones((8, 64), "f")}, ["do not fit"]),
        ({"blk.1.ffn_up.weight": np.ones((8, 4, 64), "f")}, ["do not fit"]),
        ({"output_norm.weight": np.full(64, np.nan, "f")}, ["not numbers"]),
    ],
    ids=[
        "expert",
        "longrope",
        "embedding",
        "tokens",
        "missing",
        "rows",
        "3 dimensions",
        "nan",
    ],
)
def test_refused_tensors(checkpoints, tmp_path, tensors, words):
    save_gguf(checkpoints("qwen3"), tmp_path / "tiny.gguf", tensors)
    with pytest.raises(AllMemError) as error:
        convert(tmp_path / "tiny.gguf", tmp_path / "new")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_refused_files(checkpoints, tmp_path):
    save_gguf(checkpoints("qwen3"), tmp_path / "good.gguf")
    good = (tmp_path / "good.gguf").read_bytes()
    path = tmp_path / "tiny.gguf"
    big_endian = good[:4] + good[4:8][::-1] + good[8:]
    for content, words in [
        (b"", "not a GGUF file"),
        (b"hello", "not a GGUF file"),
        (good[:20], "ends early"),
        (good[:2000], "ends early"),
        (good[:-1000], "after the file's last byte.*get it again"),
        (good[:4] + b"\x01\0\0\0" + good[8:], "version 1"),
        (big_endian, "little-endian"),
        (good[:8] + b"\xff" * 8 + good[16:], "damaged"),
        (good[:16] + b"\xff" * 8 + good[24:], "damaged"),
    ]:
        path.write_bytes(content)
        with pytest.raises(AllMemError, match=f"tiny.gguf.*{words}"):
            convert(path, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_neutral_settings(checkpoints, tmp_path):
    """Values that are sometimes written and mean nothing."""
    neutral = {
        "qwen3.expert_count": 0,
        "qwen3.rope.scaling.finetuned": True,
        "qwen3.rope.scaling.type": "none",
        "qwen3.vocab_size": 128,
        "general.name": "anything",
        "quantize.imatrix.file": "somewhere",
    }
    save_gguf(checkpoints("qwen3"), tmp_path / "tiny.gguf", **neutral)
    convert(tmp_path / "tiny.gguf", tmp_path / "new")


def test_the_documentation():
    """It lists what is supported."""
    text = (ROOT / "docs" / "conversion.md").read_text()
    section = text[text.index("## GGUF") :]
    for name in (*ARCHITECTURES, *PRE_TOKENIZERS):
        assert f"`{name}`" in section, name
