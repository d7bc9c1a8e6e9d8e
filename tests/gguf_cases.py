"""Tiny checkpoints of every family that a GGUF file can hold.

They are those of ``family_cases``, but for settings that llama.cpp knows by heart and
does not write.
"""

from typing import Any

from family_cases import CASES as ALL
from family_cases import (
    FULL,
    LINEAR,
    LINEAR_ATTENTION,
    PROPORTIONAL,
    SLIDING,
    YARN,
    theta,
)

SAME = [
    "cohere",
    "ernie4_5",
    "exaone4, all global",
    "exaone4",
    "glm4",
    "granite",
    "llama, linear",
    "llama, llama3, biases, untied",
    "llama",
    "mistral",
    "nemotron",
    "olmo2",
    "olmo3",
    "phi3, sliding",
    "phi3",
    "qwen2",
    "qwen3, yarn",
    "qwen3",
    "seed_oss",
    "stablelm, parallel",
    "starcoder2",
]
CONV = "conv"
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DELTA_NET: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": [LINEAR_ATTENTION, FULL] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
}
SECTIONS = {**DELTA_NET["rope_parameters"], "mrope_section": [2, 1, 1]}
QWEN3_5 = {**DELTA_NET, "rope_parameters": SECTIONS}
GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
    "rope_parameters": theta(5000.0),
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
}
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "tie_word_embeddings": False,
}
GEMMA4 = {
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, SLIDING, FULL] * 2,
    "sliding_window": 24,
    "global_head_dim": 32,
    "rope_parameters": PROPORTIONAL,
}
GPT_OSS = {
    **LOCAL_EXPERTS,
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
    "sliding_window": 24,
    "intermediate_size": 96,
    "tie_word_embeddings": False,
}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": (
        "cohere2",
        {
            "num_hidden_layers": 5,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING],
            "sliding_window": 24,
            "logit_scale": 0.25,
            "rotary_pct": 1.0,
            "rope_parameters": theta(5000.0),
        },
    ),
    "gemma": ("gemma", {"hidden_size": 40}),
    "gemma2": (
        "gemma2",
        {
            "hidden_size": 40,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 24,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "hidden_size": 40,
            "num_hidden_layers": 7,
            "layer_types": [SLIDING] * 5 + [FULL, SLIDING],
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "rope_parameters": {
                FULL: {**LINEAR, "rope_theta": 100000.0},
                SLIDING: theta(5000.0),
            },
        },
    ),
    "phi": (
        "phi",
        {
            "intermediate_size": 256,
            "num_key_value_heads": 4,
            "rope_parameters": theta(10000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "smollm3": (
        "smollm3",
        {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "pad_token_id": 0},
    ),
    "stablelm": (
        "stablelm",
        {
            "use_qkv_bias": True,
            "use_parallel_residual": False,
            "rope_parameters": theta(10000.0, partial_rotary_factor=0.25),
            "tie_word_embeddings": False,
        },
    ),
}
# Layers of other kinds, and mixtures of experts.
OWN |= {
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 3,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "rope_parameters": theta(5000.0),
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **MAMBA,
            "mamba_d_ssm": 128,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "attention_in_multiplier": 0.9,
            "attention_out_multiplier": 0.8,
            "key_multiplier": 0.7,
            "lm_head_multiplier": 0.6,
            "embedding_multiplier": 1.5,
            "mlp_multipliers": [0.7, 0.8],
            "ssm_in_multiplier": 0.9,
            "ssm_out_multiplier": 1.1,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
            "tie_word_embeddings": False,
            "rope_parameters": theta(5000.0),
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4, experts": (
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
            "final_logit_softcapping": 3.0,
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            "num_hidden_layers": 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "num_nextn_predict_layers": 0,
            "attention_bias": True,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "gpt_oss": ("gpt_oss", {**GPT_OSS, "rope_parameters": theta(5000.0)}),
    "gpt_oss, yarn": (
        "gpt_oss",
        {**GPT_OSS, "rope_parameters": {**YARN, "truncate": False}},
    ),
    "granitemoe": ("granitemoe", {**GRANITE, **LOCAL_EXPERTS}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **GRANITE,
            **LOCAL_EXPERTS,
            **MAMBA,
            "num_hidden_layers": 3,
            "layer_types": [LINEAR_ATTENTION, FULL, LINEAR_ATTENTION],
            "shared_intermediate_size": 48,
            "position_embedding_type": "nope",
        },
    ),
    "granitemoehybrid, dense": (
        "granitemoehybrid",
        {
            **GRANITE,
            **MAMBA,
            "mamba_n_groups": 1,
            "layer_types": [LINEAR_ATTENTION, FULL],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "nope",
        },
    ),
    "granitemoehybrid, attention alone": (
        "granitemoehybrid",
        {
            **GRANITE,
            **MAMBA,
            "layer_types": [FULL, FULL],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
        },
    ),
    "granitemoehybrid, shared expert": (
        "granitemoehybrid",
        {
            **GRANITE,
            **LOCAL_EXPERTS,
            **MAMBA,
            "layer_types": [FULL, FULL],
            "shared_intermediate_size": 48,
            "position_embedding_type": "rope",
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 3,
            "layer_types": [CONV, FULL, CONV],
            "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 32,
            "norm_eps": 1e-5,
            "rope_parameters": theta(5000.0),
        },
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "layer_types": [CONV, FULL, CONV],
            "num_dense_layers": 1,
            "norm_topk_prob": True,
            "use_expert_bias": True,
            "norm_eps": 1e-5,
            "rope_parameters": theta(5000.0),
        },
    ),
    "mixtral": (
        "mixtral",
        {**LOCAL_EXPERTS, "sliding_window": None, "rope_parameters": theta(5000.0)},
    ),
    "nemotron_h": (
        "nemotron_h",
        {**NEMOTRON_H, "layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
    ),
    "nemotron_h, experts": (
        "nemotron_h",
        {
            **NEMOTRON_H,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
        },
    ),
    "olmoe": (
        "olmoe",
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "norm_topk_prob": False,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
            "rope_parameters": theta(5000.0),
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_5": ("qwen3_5_text", QWEN3_5),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {**QWEN3_5, **EXPERTS, "shared_expert_intermediate_size": 48},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_next": (
        "qwen3_next",
        {
            **DELTA_NET,
            **EXPERTS,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
}
CASES = {name: ALL[name] for name in SAME} | OWN
