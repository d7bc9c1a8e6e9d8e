"""GGUF files made from Hugging Face folders, as llama.cpp's converter makes them.

Names of tensors are the gguf package's, not those of the code under test. The files of
``gguf_cases`` were compared with those of llama.cpp's converter: the tensors are equal,
and settings that only one of them states are what the other leaves to be known.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

ARCHITECTURES = {
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "mistral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
}
INTERLEAVED = ("llama", "granite", "smollm3")
OFFSET = ("gemma", "gemma2", "gemma3", "nemotron")
ARCH_OF = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}
# What stands in config.json and what in a file, beside SETTINGS.
OWN = {
    "logit_scale": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
    "use_parallel_residual": "use_parallel_residual",
}
SLIDING = ("cohere2", "exaone4", "gemma2", "gemma3", "olmo2", "phi3")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    values: dict[str, Any] = {}
    if "sliding_attention" in rope:
        values["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    values["rope.freq_base"] = rope["rope_theta"]
    part = rope.get("partial_rotary_factor", 1.0)
    values["rope.dimension_count"] = int(part * config["head_dim"])
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        values["rope.scaling.original_context_length"] = original
    return values


def model_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What a file says of a model."""
    kind = config["model_type"]
    name = ARCHITECTURES.get(kind, kind)
    values = {key: config[hf] for key, hf in SETTINGS.items()} | _rope(config)
    for hf, key in OWN.items():
        if config.get(hf) is not None:
            values[key] = config[hf]
    if name in SLIDING and config.get("sliding_window") is not None:
        values["attention.sliding_window"] = config["sliding_window"]
        if name in ("olmo2", "exaone4"):
            sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
            values["attention.sliding_window_pattern"] = sliding
    values = {f"{name}.{key}": value for key, value in values.items()}
    return {"general.architecture": name, **values}


def llama3_factors(rope: dict[str, Any], size: int) -> np.ndarray:
    """The tensor in which llama.cpp keeps the settings of Llama 3.1."""
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / size)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def model_tensors(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a model under llama.cpp's names and in its layout."""
    kind = config["model_type"]
    name = ARCHITECTURES.get(kind, kind)
    layers, size = config["num_hidden_layers"], config["head_dim"]
    names = gguf.get_tensor_name_map(ARCH_OF[name], layers)
    tensors = {}
    for hf, x in mx.load(str(folder / "model.safetensors")).items():
        stem, _, suffix = hf.rpartition(".")
        x = np.array(x)
        if name in INTERLEAVED and stem.endswith(("q_proj", "k_proj")):
            columns = x.shape[1:]
            x = x.reshape(-1, 2, size // 2, *columns).swapaxes(1, 2)
            x = x.reshape(-1, *columns)
        if name in OFFSET and hf.endswith("norm.weight"):
            x = x + 1
        tensors[f"{names.get_name(stem)}.{suffix}"] = x
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(rope, size)
    return tensors


def tokenizer_metadata(folder: Path) -> dict[str, Any]:
    """What a file says of the tests' byte-level tokenizer."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocab = tokenizer["model"]["vocab"] | added
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(vocab, key=lambda token: vocab[token]),
        "tokenizer.ggml.merges": ["H e"],
        "tokenizer.ggml.token_type": [
            3 if i in added.values() else 1 for i in range(len(vocab))
        ],
        "tokenizer.ggml.bos_token_id": 125,
        "tokenizer.ggml.eos_token_id": 126,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray | tuple]
) -> None:
    """
    Args:
        path (Path): the file.
        metadata (dict): its values; one that is ``None`` is left out.
        tensors (dict): arrays, or pairs of bytes [rows, bytes] and their type.
    """
    # The writer wants to say it itself.
    name = metadata.get("general.architecture") or "none"
    writer = gguf.GGUFWriter(path, name)
    if metadata.get("general.architecture") is None:
        writer.kv_data[0].pop("general.architecture")
    add: dict[type, Any] = {
        bool: writer.add_bool,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        if key == "general.architecture" or value is None:
            continue
        if type(value) is int:
            large = value > 2**32 - 1
            (writer.add_uint64 if large else writer.add_uint32)(key, value)
        else:
            add[type(value)](key, value)
    for key, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(key, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_gguf(folder: Path, path: Path, tensors=None, **changed: Any) -> None:
    """A Hugging Face folder as a GGUF file.

    Args:
        folder (Path): the folder.
        path (Path): the file.
        tensors (dict): tensors that replace the model's; ``None`` removes one.
        changed: values that replace those of the file; ``None`` removes one.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    stored = {**model_tensors(folder, config), **(tensors or {})}
    stored = {name: x for name, x in stored.items() if x is not None}
    metadata = model_metadata(config) | tokenizer_metadata(folder) | changed
    write_gguf(path, metadata, stored)
