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
from gguf_tensors import convert_tensors

ARCHITECTURES = {
    "cohere": "command-r",
    "ernie4_5_moe": "ernie4_5-moe",
    "falcon_h1": "falcon-h1",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "glm4_moe": "glm4moe",
    "gpt_oss": "gpt-oss",
    "granitemoehybrid": "granitehybrid",
    "lfm2_moe": "lfm2moe",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_moe": "qwen2moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
}

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
    "num_experts_per_tok": "expert_used_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}
SLIDING = (
    "cohere2",
    "exaone4",
    "gemma2",
    "gemma3",
    "gemma4",
    "gpt-oss",
    "olmo2",
    "phi3",
)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {"rope_theta": 10000.0}
    values: dict[str, Any] = {}
    if "sliding_attention" in rope:
        values["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    values["rope.freq_base"] = rope["rope_theta"]
    part = rope.get("partial_rotary_factor", 1.0)
    values["rope.dimension_count"] = int(part * config["head_dim"])
    if rope.get("rope_type") in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = rope["factor"]
    if rope.get("rope_type") == "yarn":
        original = rope["original_max_position_embeddings"]
        values["rope.scaling.original_context_length"] = original
    return values


def architecture_of(config: dict[str, Any]) -> str:
    """llama.cpp's name of a model's family."""
    kind: str = config["model_type"]
    if kind == "nemotron_h" and "moe" in config["layers_block_type"]:
        return "nemotron_h_moe"
    if kind == "granitemoehybrid" and "linear_attention" not in config["layer_types"]:
        # In llama.cpp, layers without attention make a hybrid.
        return "granitemoe" if config["num_experts_per_tok"] else "granite"
    return ARCHITECTURES.get(kind, kind)


def _experts(config: dict[str, Any]) -> dict[str, Any]:
    count = config.get("num_local_experts", config.get("num_experts"))
    return {} if count is None else {"expert_count": count}


def _moe(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen2MoeModel"""
    values = {"expert_feed_forward_length": config["moe_intermediate_size"]}
    if (shared := config.get("shared_expert_intermediate_size")) is not None:
        values["expert_shared_feed_forward_length"] = shared
    return values


def _delta_net(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3NextModel"""
    heads = config["linear_num_value_heads"]
    part = config["rope_parameters"]["partial_rotary_factor"]
    values = {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": config["linear_value_head_dim"] * heads,
        "full_attention_interval": config["layer_types"].index("full_attention") + 1,
        "rope.dimension_count": int(part * config["head_dim"]),
    }
    if "moe_intermediate_size" in config:
        values |= _moe(config)
    return values


def _qwen35(config: dict[str, Any]) -> dict[str, Any]:
    """_Qwen35MRopeMixin"""
    sections = config["rope_parameters"].get("mrope_section", [11, 11, 10])
    return {**_delta_net(config), "rope.dimension_sections": [*sections, 0]}


def _lfm2(config: dict[str, Any]) -> dict[str, Any]:
    heads = config["num_key_value_heads"]
    kinds = config["layer_types"]
    width = config["intermediate_size"]
    if config.get("block_auto_adjust_ff_dim"):
        multiple = config["block_multiple_of"]
        width = int(config["block_ffn_dim_multiplier"] * int(2 * width / 3))
        width = multiple * -(-width // multiple)
    values = {
        "attention.head_count_kv": [heads * (kind == FULL) for kind in kinds],
        "feed_forward_length": width,
        "attention.layer_norm_rms_epsilon": config["norm_eps"],
        "shortconv.l_cache": config["conv_L_cache"],
        "vocab_size": config["vocab_size"],
    }
    if config["model_type"] == "lfm2_moe":
        values |= {
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "leading_dense_block_count": config["num_dense_layers"],
            "expert_gating_func": 2,
        }
    return values


def _gpt_oss(config: dict[str, Any]) -> dict[str, Any]:
    return {"expert_feed_forward_length": config["intermediate_size"]}


def _gemma4(config: dict[str, Any]) -> dict[str, Any]:
    kinds, shared = config["layer_types"], config["num_kv_shared_layers"]
    layers = range(len(kinds))
    own = config["per_layer_config"]
    full = {**config, **next(iter(own.values()))}
    values: dict[str, Any] = {
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": config["hidden_size_per_layer_input"] or 0,
        "attention.sliding_window_pattern": [x == "sliding_attention" for x in kinds],
        "attention.key_length": full["head_dim"],
        "attention.value_length": full["head_dim"],
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
        "rope.dimension_count": full["head_dim"],
        "rope.dimension_count_swa": config["head_dim"],
    }
    if config["enable_moe_block"]:
        values["expert_feed_forward_length"] = config["moe_intermediate_size"]
        values["expert_used_count"] = config["top_k_experts"]
    if config["use_double_wide_mlp"]:
        width, first = config["intermediate_size"], len(kinds) - shared
        values["feed_forward_length"] = [width * (1 + (i >= first)) for i in layers]
    if full["num_key_value_heads"] != config["num_key_value_heads"]:
        heads = {FULL: full["num_key_value_heads"]}
        usual = config["num_key_value_heads"]
        values["attention.head_count_kv"] = [heads.get(kind, usual) for kind in kinds]
    return values


def _mamba(config: dict[str, Any], heads: str, size: str, rest: dict[str, str]):
    """Mamba2Model"""
    found = {f"ssm.{key}": config[name] for key, name in rest.items()}
    inner = config[heads] * config[size]
    return {**found, "ssm.inner_size": inner, "ssm.time_step_rank": config[heads]}


MAMBA = {
    "conv_kernel": "mamba_d_conv",
    "state_size": "mamba_d_state",
    "group_count": "mamba_n_groups",
}


def _granite(config: dict[str, Any]) -> dict[str, Any]:
    """GraniteMoeModel and GraniteHybridModel"""
    values = {
        "vocab_size": config["vocab_size"],
        "rope.dimension_count": config["head_dim"],
        # GraniteModel: its size follows from their number.
        "attention.key_length": None,
        "attention.value_length": None,
    }
    if shared := config.get("shared_intermediate_size"):
        values["expert_shared_feed_forward_length"] = shared
    if config["model_type"] == "granitemoehybrid":
        heads = config["num_key_value_heads"]
        kinds = config["layer_types"]
        hybrid = "linear_attention" in kinds
        values |= _mamba(config, "mamba_n_heads", "mamba_d_head", MAMBA)
        values["attention.head_count_kv"] = [heads * (kind == FULL) for kind in kinds]
        values["rope.scaling.finetuned"] = not hybrid
        if hybrid:
            values["context_length"] = 2**20
    return values


def _falcon_h1(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_mamba(config, "mamba_n_heads", "mamba_d_head", MAMBA),
        "vocab_size": config["vocab_size"],
        "rope.dimension_count": None,
    }


def _nemotron_h(config: dict[str, Any]) -> dict[str, Any]:
    names = {
        "conv_kernel": "conv_kernel",
        "state_size": "ssm_state_size",
        "group_count": "n_groups",
    }
    kinds = config["layers_block_type"]
    heads, moe = config["num_key_value_heads"], "moe" in kinds
    width = config["moe_intermediate_size" if moe else "intermediate_size"]
    values = {
        **_mamba(config, "mamba_num_heads", "mamba_head_dim", names),
        "block_count": len(kinds),
        "context_length": 2**20,
        "attention.head_count_kv": [heads * (kind == FULL) for kind in kinds],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        "feed_forward_length": [width * (kind in ("mlp", "moe")) for kind in kinds],
        "rope.scaling.finetuned": False,
        "vocab_size": config["vocab_size"],
        "expert_used_count": None,
        "expert_group_count": None,
        "expert_group_used_count": None,
    }
    if moe:
        values |= {
            "expert_used_count": config["num_experts_per_tok"],
            "expert_group_count": config["n_group"],
            "expert_group_used_count": config["topk_group"],
            "expert_count": config["n_routed_experts"],
            "expert_feed_forward_length": width,
            "expert_shared_feed_forward_length": config[
                "moe_shared_expert_intermediate_size"
            ],
            "expert_shared_count": config["n_shared_experts"],
            "expert_weights_norm": config["norm_topk_prob"],
            "expert_weights_scale": config["routed_scaling_factor"],
        }
    return values


def _ernie4_5_moe(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "expert_count": config["moe_num_experts"],
        "expert_used_count": config["moe_k"],
        "interleave_moe_layer_step": config["moe_layer_interval"],
        "leading_dense_block_count": config["moe_layer_start_index"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["moe_num_shared_experts"],
        "expert_shared_feed_forward_length": config["intermediate_size"]
        // config["num_key_value_heads"],
    }


def _glm4_moe(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "expert_count": config["n_routed_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_gating_func": 2,
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"],
        "nextn_predict_layers": 0,
    }


FULL = "full_attention"
# What a class of llama.cpp's converter adds, in ``set_gguf_parameters``.
MORE = {
    "ernie4_5_moe": _ernie4_5_moe,
    "falcon_h1": _falcon_h1,
    "gemma4_text": _gemma4,
    "glm4_moe": _glm4_moe,
    "gpt_oss": _gpt_oss,
    "granitemoe": _granite,
    "granitemoehybrid": _granite,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "nemotron_h": _nemotron_h,
    "qwen2_moe": _moe,
    "qwen3_5_moe_text": _qwen35,
    "qwen3_5_text": _qwen35,
    "qwen3_moe": _moe,
    "qwen3_next": _delta_net,
}


def model_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What a file says of a model."""
    name = architecture_of(config)
    values = {key: config[hf] for key, hf in SETTINGS.items() if hf in config}
    values |= _rope(config) | _experts(config)
    for hf, key in OWN.items():
        # FalconH1Model multiplies the weights.
        if config.get(hf) is not None and (name, key) != (
            "falcon-h1",
            "embedding_scale",
        ):
            values[key] = config[hf]
    if name in SLIDING and config.get("sliding_window") is not None:
        values["attention.sliding_window"] = config["sliding_window"]
        if name in ("olmo2", "exaone4"):
            sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
            values["attention.sliding_window_pattern"] = sliding
    values |= MORE.get(config["model_type"], lambda config: {})(config)
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
    arrays = mx.load(str(folder / "model.safetensors"))
    tensors = {name: np.array(x) for name, x in arrays.items()}
    tensors = convert_tensors(tensors, config, architecture_of(config))
    rope = config.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(rope, config["head_dim"])
    if rope.get("rope_type") == "proportional":
        tensors["rope_freqs.weight"] = proportional_factors(config)
    return tensors


def proportional_factors(config: dict[str, Any]) -> np.ndarray:
    """Gemma4Model.generate_extra_tensors"""
    size = next(iter(config["per_layer_config"].values()))["head_dim"]
    rope = config["rope_parameters"]["full_attention"]
    count = int(size * rope["partial_rotary_factor"] / 2)
    return np.array([1.0] * count + [1e30] * (size // 2 - count), np.float32)


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
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray | tuple],
    part: int = 0,
) -> None:
    """
    Args:
        path (Path): the file.
        metadata (dict): its values; one that is ``None`` is left out.
        tensors (dict): arrays, or pairs of bytes [rows, bytes] and their type.
        part (int): tensors in a file, of several that are called after ``path``.
            Default: all in one.
    """
    # The writer wants to say it itself.
    name = metadata.get("general.architecture") or "none"
    writer = gguf.GGUFWriter(path, name, split_max_tensors=part)
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


def save_gguf(
    folder: Path, path: Path, tensors=None, part: int = 0, **changed: Any
) -> None:
    """A Hugging Face folder as a GGUF file, or as several.

    Args:
        folder (Path): the folder.
        path (Path): the file.
        tensors (dict): tensors that replace the model's; ``None`` removes one.
        part (int): tensors in a file. Default: all in one.
        changed: values that replace those of the file; ``None`` removes one.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    stored = {**model_tensors(folder, config), **(tensors or {})}
    stored = {name: x for name, x in stored.items() if x is not None}
    metadata = model_metadata(config) | tokenizer_metadata(folder) | changed
    write_gguf(path, metadata, stored, part)
