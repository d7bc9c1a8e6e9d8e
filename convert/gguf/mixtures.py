"""Mixtures of experts, as llama.cpp stores them: those of a layer in one tensor."""

from typing import Any

from .architecture import POST_ATTENTION, QK_NORMS, Architecture, Names
from .recipes import experts, halves, joined, one_row, packed_experts, transposed
from .rope import rope_parameters
from .settings import (
    FULL,
    SIGMOID,
    SOFTMAX_OF_CHOSEN,
    granite,
    layer_types,
    rms,
    routing,
)
from .source import Source

MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def single_experts(place: str, *matrices: str) -> Names:
    """Tensors of experts that transformers has one by one, and of their router.

    Args:
        place (str): the mixture in the layer.
        matrices (str): what an expert calls its gate, up and down projection.
    """
    gate, up, down = (f"{place}.experts.{{}}.{name}.weight" for name in matrices)
    return {
        "ffn_gate_inp": f"{place}.gate",
        "ffn_gate_exps.weight": experts(gate),
        "ffn_up_exps.weight": experts(up),
        "ffn_gate_up_exps.weight": halves(gate, up),
        "ffn_down_exps.weight": experts(down),
    }


EXPERTS = single_experts("mlp", "gate_proj", "up_proj", "down_proj")
STACKED_EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps.weight": joined("mlp.experts.gate_up_proj", "ffn_up_exps.weight"),
    "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
SHARED_EXPERT: Names = {
    "ffn_gate_inp_shexp.weight": one_row("mlp.shared_expert_gate.weight"),
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_EXPERTS: Names = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
MIXTRAL = single_experts("block_sparse_moe", "w1", "w3", "w2")
GRANITE: Names = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps.weight": joined(
        "block_sparse_moe.input_linear.weight", "ffn_up_exps.weight"
    ),
    "ffn_gate_up_exps": "block_sparse_moe.input_linear",
    "ffn_down_exps": "block_sparse_moe.output_linear",
    "ffn_gate_shexp.weight": joined(
        "shared_mlp.input_linear.weight", "ffn_up_shexp.weight"
    ),
    "ffn_down_shexp": "shared_mlp.output_linear",
    # Without experts, what they share is the MLP.
    "ffn_gate.weight": joined("shared_mlp.input_linear.weight", "ffn_up.weight"),
    "ffn_gate": None,
    "ffn_up": None,
    "ffn_down": "shared_mlp.output_linear",
}
GPT_OSS: Names = {
    **POST_ATTENTION,
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps.weight": transposed(
        "mlp.experts.gate_up_proj", "ffn_up_exps.weight"
    ),
    "ffn_gate_exps.bias": transposed(
        "mlp.experts.gate_up_proj_bias", "ffn_up_exps.bias"
    ),
    "ffn_down_exps.weight": transposed("mlp.experts.down_proj"),
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}


def _qwen_experts(source: Source) -> dict[str, Any]:
    count, used = routing(source)
    return {
        **rms(source),
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
    }


def shared_expert(source: Source) -> dict[str, Any]:
    """Qwen's settings of experts, one of which every token gets."""
    shared = source.get("expert_shared_feed_forward_length", int)
    return {**_qwen_experts(source), "shared_expert_intermediate_size": shared}


def _qwen2moe(source: Source) -> dict[str, Any]:
    return {
        **shared_expert(source),
        "norm_topk_prob": False,
        "qkv_bias": source.has_tensor("attn_q.bias"),
        "sliding_window": None,
        "layer_types": [FULL] * source.layers,
    }


def _qwen3moe(source: Source) -> dict[str, Any]:
    return {**_qwen_experts(source), "norm_topk_prob": True, "attention_bias": False}


def _olmoe(source: Source) -> dict[str, Any]:
    count, used = routing(source)
    return {
        **rms(source),
        "num_experts": count,
        "num_experts_per_tok": used,
        "norm_topk_prob": False,
        "attention_bias": False,
        "pad_token_id": None,
    }


def mixtral(source: Source) -> dict[str, Any]:
    """Mixtral, which is stored as llama."""
    count, used = routing(source)
    return {
        **rms(source),
        "model_type": "mixtral",
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "sliding_window": None,
    }


def _granitemoe(source: Source) -> dict[str, Any]:
    count, used = routing(source)
    settings = {
        **granite(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "num_local_experts": count,
        "num_experts_per_tok": used,
    }
    rotates = source.get("rope.scaling.finetuned", bool, True)
    if shared := source.get("expert_shared_feed_forward_length", int, 0):
        # The family whose layers may have a memory of their own has a shared expert.
        return settings | {
            "model_type": "granitemoehybrid",
            "shared_intermediate_size": shared,
            "layer_types": ["attention"] * source.layers,
            "position_embedding_type": "rope" if rotates else "nope",
        }
    if not rotates:
        raise source.error("granitemoe without a rotary embedding is not supported")
    return settings


def _ernie4_5(source: Source) -> dict[str, Any]:
    count, used = routing(source)
    source.get("expert_shared_feed_forward_length", int, 0)  # another formula's result
    return {
        **rms(source),
        "use_bias": source.has_tensor("attn_q.bias"),
        "moe_num_experts": count,
        "moe_k": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
        "moe_num_shared_experts": source.get("expert_shared_count", int, 0),
        "moe_layer_start_index": source.get("leading_dense_block_count", int, 0),
        "moe_layer_interval": source.get("interleave_moe_layer_step", int, 1),
        "pad_token_id": None,
    }


def _glm4moe(source: Source) -> dict[str, Any]:
    count, used = routing(source, SIGMOID)
    return {
        **rms(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "use_qk_norm": source.has_tensor("attn_q_norm.weight"),
        "n_routed_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
        "n_shared_experts": source.get("expert_shared_count", int, 0),
        "first_k_dense_replace": source.get("leading_dense_block_count", int, 0),
        "norm_topk_prob": source.get("expert_weights_norm", bool, False),
        "routed_scaling_factor": source.get("expert_weights_scale", float, 1.0),
        "n_group": source.get("expert_group_count", int, 1),
        "topk_group": source.get("expert_group_used_count", int, 1),
        "num_nextn_predict_layers": 0,
        "pad_token_id": None,
    }


def _gpt_oss(source: Source) -> dict[str, Any]:
    count, used = routing(source, SOFTMAX_OF_CHOSEN)
    rope = rope_parameters(source)
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False
    packed = {"quantization_config": MXFP4} if packed_experts(source) else {}
    return {
        **packed,
        **rms(source),
        "intermediate_size": source.get(
            "expert_feed_forward_length", int, source.get("feed_forward_length", int)
        ),
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "sliding_window": source.get("attention.sliding_window", int),
        "layer_types": layer_types(source, 2),
        "rope_parameters": rope,
        "attention_bias": source.has_tensor("attn_q.bias"),
    }


MIXTURES = {
    "qwen2moe": Architecture("qwen2_moe", _qwen2moe, EXPERTS | SHARED_EXPERT),
    "qwen3moe": Architecture("qwen3_moe", _qwen3moe, QK_NORMS | EXPERTS),
    "olmoe": Architecture("olmoe", _olmoe, QK_NORMS | EXPERTS),
    "granitemoe": Architecture("granitemoe", _granitemoe, GRANITE, interleaved=True),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        _ernie4_5,
        {
            **EXPERTS,
            **SHARED_EXPERTS,
            "exp_probs_b.bias": one_row("mlp.moe_statics.e_score_correction_bias"),
        },
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        _glm4moe,
        {
            **POST_ATTENTION,
            **QK_NORMS,
            **EXPERTS,
            **SHARED_EXPERTS,
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        },
        partial=True,
    ),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss, GPT_OSS, dtype="bfloat16"),
}
