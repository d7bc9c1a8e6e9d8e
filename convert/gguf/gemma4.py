"""Gemma 4, as llama.cpp stores it."""

from typing import Any

import numpy as np

from .architecture import POST_NORMS, QK_NORMS, Architecture, Names
from .recipes import joined
from .rope import FACTORS
from .settings import FULL, SLIDING, layer_types, rms, routing
from .source import Source

NEVER = 1e30  # divides the frequency of a pair that is not rotated

TENSORS: Names = {
    **POST_NORMS,
    **QK_NORMS,
    "ffn_norm": "pre_feedforward_layernorm",
    "layer_output_scale.weight": "layer_scalar",
    # Inputs of each layer.
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    # Experts beside the MLP.
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_gate_exps.weight": joined("experts.gate_up_proj", "ffn_up_exps.weight"),
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}


def _one_of(source: Source, key: str, layers: list[int]) -> int:
    """The number that some layers have in common."""
    numbers = source.per_layer(key)
    if len(found := {numbers[i] for i in layers}) != 1:
        raise source.error(
            f"{source.architecture}.{key} = {str(numbers)[:40]} is not supported"
        )
    return found.pop()


def _rotated(source: Source, size: int) -> float:
    """The fraction of a head that global layers rotate: the others of its frequencies
    are divided by a number so large that nothing turns."""
    if FACTORS not in source.tensors:
        return 1.0
    tensor = source.tensors[FACTORS]
    if tensor.rows != 1 or tensor.columns != size // 2:
        raise source.error(f"tensor {FACTORS} has the shape {tensor.shape}")
    factors = tensor.read(0, 1)[0]
    count = int((factors == 1).sum())
    expected = np.array([1.0] * count + [NEVER] * (size // 2 - count), np.float32)
    if not np.array_equal(factors, expected):
        raise source.error(f"tensor {FACTORS} is not that of a known scaling of RoPE")
    return 2 * count / size


def _rope(source: Source, size: int, sliding_size: int) -> dict[str, Any]:
    key = "rope.dimension_count_swa"
    if (count := source.get(key, int, sliding_size)) != sliding_size:
        raise source.error(f"{key} {count} of {sliding_size} is not supported")
    return {
        FULL: {
            "rope_type": "proportional",
            "rope_theta": source.get("rope.freq_base", float, 1000000.0),
            "partial_rotary_factor": _rotated(source, size),
        },
        SLIDING: {
            "rope_type": "default",
            "rope_theta": source.get("rope.freq_base_swa", float, 10000.0),
        },
    }


def _heads(source: Source, types: list[str], kept: int) -> dict[str, Any]:
    """Heads of keys and values. Those of global layers may be fewer, where values are
    the keys.

    Args:
        source (Source): the file.
        types (list): the layers' types.
        kept (int): layers with keys of their own.
    """
    full = [i for i, kind in enumerate(types) if kind == FULL]
    sliding = [i for i, kind in enumerate(types) if kind == SLIDING]
    key = "attention.head_count_kv"
    count, count_full = (
        _one_of(source, key, sliding or full),
        _one_of(source, key, full),
    )
    shared = not any(i < kept for i in source.layers_with("attn_v.weight") & set(full))
    if count_full != count and not shared:
        raise source.error(
            f"{source.architecture}.{key}: fewer heads of global layers, which have "
            "values of their own, are not supported"
        )
    return {
        "num_key_value_heads": count,
        "num_global_key_value_heads": count_full if count_full != count else None,
        "attention_k_eq_v": shared,
    }


def _experts(source: Source) -> dict[str, Any]:
    if not source.has_tensor("ffn_gate_inp.weight"):
        return {"enable_moe_block": False}
    count, used = routing(source)
    return {
        "enable_moe_block": True,
        "num_experts": count,
        "top_k_experts": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
    }


def _gemma4(source: Source) -> dict[str, Any]:
    types = layer_types(source, 6)
    if FULL not in types:
        raise source.error("gemma4 without global layers is not supported")
    size = source.head_dim
    sliding_size = source.get("attention.key_length_swa", int, size)
    if source.get("attention.value_length_swa", int, sliding_size) != sliding_size:
        raise source.error("values of another size than keys are not supported")
    shared = source.get("attention.shared_kv_layers", int, 0)
    if not 0 <= shared < source.layers:
        raise source.error(f"attention.shared_kv_layers is {shared}")
    kept = source.layers - shared
    width = _one_of(source, "feed_forward_length", list(range(kept)))
    widest = _one_of(
        source, "feed_forward_length", list(range(kept, source.layers)) or [0]
    )
    if widest not in (width, 2 * width):
        raise source.error(f"layers of {width} and {widest} hidden units")
    inputs = source.get("embedding_length_per_layer_input", int, 0)
    settings = {
        **rms(source),
        **_heads(source, types, kept),
        **_experts(source),
        "head_dim": sliding_size,
        "global_head_dim": size,
        "intermediate_size": width,
        "use_double_wide_mlp": widest != width,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": inputs,
        "layer_types": types,
        "sliding_window": source.get("attention.sliding_window", int),
        "final_logit_softcapping": source.get("final_logit_softcapping", float, None),
        "rope_parameters": _rope(source, size, sliding_size),
        "attention_bias": source.has_tensor("attn_q.bias"),
    }
    if inputs and (embedding := source.tensors.get("per_layer_token_embd.weight")):
        settings["vocab_size_per_layer_input"] = embedding.rows
    return settings


GEMMA4 = {
    "gemma4": Architecture("gemma4_text", _gemma4, TENSORS, dtype="bfloat16"),
}
