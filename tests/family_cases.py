"""Tiny checkpoints of every family, made by transformers, with every setting on that
changes what the family computes."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from helpers import TINY_BASE, tiny_tokenizer

SLIDING, FULL = "sliding_attention", "full_attention"
LINEAR_ATTENTION = "linear_attention"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Experts that are chosen by a sigmoid and a bias, among those of the best groups.
ROUTED = {
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "moe_intermediate_size": 48,
}
GROUPS = {
    **ROUTED,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "tie_word_embeddings": False,
}


def theta(value: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": value, **more}


DELTA_NET = {
    "num_hidden_layers": 4,
    "layer_types": [LINEAR_ATTENTION, FULL] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
    "tie_word_embeddings": False,
}
SHARED_EXPERT = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_conv_bias": True,
}
GRANITE_HYBRID = {
    "num_hidden_layers": 4,
    "layer_types": [LINEAR_ATTENTION, LINEAR_ATTENTION, FULL, LINEAR_ATTENTION],
    **MAMBA,
    "mamba_d_head": 32,
    "mamba_expand": 2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.1,
    "logits_scaling": 2.0,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 24,
}
PROPORTIONAL = {
    FULL: {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 100000.0,
    },
    SLIDING: theta(5000.0),
}
GEMMA4 = {
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, SLIDING, FULL] * 2,
    "num_kv_shared_layers": 2,
    "sliding_window": 24,
    "head_dim": 8,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "final_logit_softcapping": 3.0,
    "use_double_wide_mlp": True,
    "rope_parameters": PROPORTIONAL,
}

# Name -> family and settings that differ from TINY_BASE. A name says what is tried.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "afmoe",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "sliding_window": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.7,
            "moe_intermediate_size": 48,
            "mup_enabled": True,
            "rope_parameters": YARN,
        },
    ),
    "apertus": ("apertus", {"rope_parameters": LLAMA3}),
    "cohere": ("cohere", {"use_qk_norm": True, "logit_scale": 0.25}),
    "cohere, biases": ("cohere", {"attention_bias": True, "num_key_value_heads": 4}),
    "cohere2": (
        "cohere2",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, SLIDING, FULL] + [SLIDING],
            "sliding_window": 24,
            "logit_scale": 0.25,
            "rope_parameters": theta(5000.0),
        },
    ),
    "dots1": (
        "dots1",
        {
            **GROUPS,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "sliding_window": None,
            "rope_parameters": LLAMA3,
        },
    ),
    "dots1, some sliding, tied": (
        "dots1",
        {
            **GROUPS,
            "num_hidden_layers": 3,
            "norm_topk_prob": False,
            "sliding_window": 24,
            "layer_types": [FULL, SLIDING, SLIDING],
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": ("ernie4_5", {"use_bias": True, "rope_parameters": theta(5000.0)}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 4,
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 48,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
            "rope_parameters": theta(5000.0),
        },
    ),
    "ernie4_5_moe, interval": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_num_shared_experts": 0,
            "moe_intermediate_size": 48,
            "moe_layer_interval": 2,
            "tie_word_embeddings": False,
        },
    ),
    "exaone4": (
        "exaone4",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "sliding_window": 24,
            "rope_parameters": LLAMA3,
        },
    ),
    "exaone4, all global": (
        "exaone4",
        {"sliding_window": None, "layer_types": [FULL] * 2},
    ),
    "exaone_moe": (
        "exaone_moe",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "sliding_window": 24,
            "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
            **ROUTED,
            "num_experts": 8,
            "num_shared_experts": 2,
            "rope_parameters": LLAMA3,
        },
    ),
    "gemma": ("gemma", {"hidden_size": 40, "rope_parameters": theta(5000.0)}),
    "gemma2": (
        "gemma2",
        {
            "hidden_size": 40,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 24,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "hidden_size": 40,
            "num_hidden_layers": 6,
            "layer_types": [SLIDING, SLIDING, FULL] * 2,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "rope_parameters": {
                FULL: {**LINEAR, "rope_theta": 100000.0},
                SLIDING: theta(5000.0),
            },
        },
    ),
    "glm": (
        "glm",
        {
            "attention_bias": True,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
        },
    ),
    "glm, untied": (
        "glm",
        {"rope_parameters": LINEAR, "tie_word_embeddings": False},
    ),
    "glm4": (
        "glm4",
        {
            "attention_bias": True,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **GROUPS,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "use_qk_norm": True,
            "rope_parameters": {**YARN, "partial_rotary_factor": 0.5},
        },
    ),
    "glm4_moe, without groups": (
        "glm4_moe",
        {
            **GROUPS,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 1,
            "first_k_dense_replace": 0,
        },
    ),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.1,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LINEAR,
        },
    ),
    "granitemoe": (
        "granitemoe",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.1,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_bias": True,
            "rope_parameters": LINEAR,
        },
    ),
    "helium": ("helium", {"attention_bias": True, "mlp_bias": True}),
    "internlm3": (
        "internlm3",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR},
    ),
    "internlm3, dynamic": (
        "internlm3",
        {
            "max_position_embeddings": 320,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 5000.0,
                "factor": 6.0,
            },
            "tie_word_embeddings": False,
        },
    ),
    "iquestcoder": ("iquestcoder", {"rope_parameters": theta(500.0)}),
    "laguna": (
        "laguna",
        {
            "num_hidden_layers": 4,
            "layer_types": [FULL, SLIDING, SLIDING, FULL],
            "sliding_window": 24,
            "num_attention_heads_per_layer": [4, 2, 8, 4],
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
            "moe_routed_scaling_factor": 1.7,
            "moe_router_logit_softcapping": 0.5,
            "attention_bias": True,
            "rope_parameters": {
                FULL: {**YARN, "partial_rotary_factor": 0.5},
                SLIDING: theta(5000.0),
            },
        },
    ),
    "laguna, all global": (
        "laguna",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "gating": "per-head",
            "rope_parameters": {FULL: theta(5000.0)},
            "tie_word_embeddings": False,
        },
    ),
    "llama": ("llama", {"rope_parameters": theta(500.0)}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, llama3, biases, untied": (
        "llama",
        {
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "llama, yarn": (
        "llama",
        {
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 0.7,
                "mscale_all_dim": 0.4,
            },
        },
    ),
    "llama, yarn with half an mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.7}},
    ),
    "mellum": (
        "mellum",
        {
            "num_hidden_layers": 3,
            "layer_types": [SLIDING, FULL, SLIDING],
            "sliding_window": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "rope_parameters": {FULL: YARN, SLIDING: theta(5000.0)},
        },
    ),
    "mellum, not normed": (
        "mellum",
        {
            "num_hidden_layers": 3,
            "layer_types": [SLIDING, FULL, SLIDING],
            "sliding_window": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": False,
            "rope_parameters": {FULL: LLAMA3, SLIDING: theta(5000.0)},
            "tie_word_embeddings": False,
        },
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        {
            "num_hidden_layers": 4,
            "layer_types": [FULL, SLIDING, SLIDING, FULL],
            "sliding_window": 24,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
            "num_key_value_heads": 1,
            "head_dim": 24,
            "v_head_dim": 16,
            "attention_value_scale": 0.7,
            **ROUTED,
            "n_routed_experts": 8,
            "rope_parameters": {
                FULL: theta(50000.0, partial_rotary_factor=0.5),
                SLIDING: theta(5000.0, partial_rotary_factor=0.5),
            },
            "tie_word_embeddings": False,
        },
    ),
    "minimax_m2": (
        "minimax_m2",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "rope_parameters": {**YARN, "partial_rotary_factor": 0.5},
        },
    ),
    "minimax_m2, untied": (
        "minimax_m2",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rotary_dim": 8,
            "tie_word_embeddings": False,
        },
    ),
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": YARN}),
    "mistral, sliding": ("mistral", {"sliding_window": 48}),
    "mixtral": (
        "mixtral",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "rope_parameters": LINEAR,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral, sliding": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 48},
    ),
    "nemotron": (
        "nemotron",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": ("olmo2", {"attention_bias": True, "rope_parameters": YARN}),
    "olmo3": (
        "olmo3",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "sliding_window": 24,
            "rope_parameters": {SLIDING: theta(10000.0), FULL: YARN},
        },
    ),
    "olmoe": (
        "olmoe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
            "rope_parameters": YARN,
        },
    ),
    "olmoe, not normed": (
        "olmoe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "tie_word_embeddings": False,
        },
    ),
    "phi": (
        "phi",
        {
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "phi3": (
        "phi3",
        {
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.75),
            "pad_token_id": 0,
        },
    ),
    "phi3, sliding": ("phi3", {"sliding_window": 48, "pad_token_id": 0}),
    "phimoe": (
        "phimoe",
        {
            "num_local_experts": 6,
            "router_jitter_noise": 0.3,
            "attention_bias": True,
            "lm_head_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": theta(5000.0),
        },
    ),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 0},
    ),
    "qwen2, some sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "phimoe, longrope": (
        "phimoe",
        {
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "original_max_position_embeddings": 320,
                "rope_type": "longrope",
                "rope_theta": 5000.0,
                "short_factor": [1.0, 1.2, 1.5, 1.9] * 2,
                "long_factor": [2.0, 3.0, 5.0, 8.0] * 2,
                "short_mscale": 1.3,
                "long_mscale": 1.5,
            },
        },
    ),
    "phimoe, sliding": (
        "phimoe",
        {
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
            "tie_word_embeddings": False,
            "sliding_window": 48,
        },
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
            "tie_word_embeddings": False,
            "rope_parameters": LINEAR,
        },
    ),
    "qwen2_moe, some sliding": (
        "qwen2_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
            "use_sliding_window": True,
            "sliding_window": 24,
            "layer_types": [SLIDING, FULL],
            "tie_word_embeddings": False,
        },
    ),
    "qwen3": ("qwen3", {"rope_parameters": theta(500.0)}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_hidden_layers": 4,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "rope_parameters": YARN,
        },
    ),
    "qwen3_moe, sliding": (
        "qwen3_moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": False,
            "use_sliding_window": True,
            "sliding_window": 48,
        },
    ),
    "seed_oss": (
        "seed_oss",
        {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    ),
    "smollm3": (
        "smollm3",
        {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1], "pad_token_id": 0},
    ),
    "solar_open": (
        "solar_open",
        {**GROUPS, "attention_bias": True, "rope_parameters": YARN},
    ),
    "stablelm": (
        "stablelm",
        {
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": False,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.25),
            "tie_word_embeddings": False,
        },
    ),
    "stablelm, parallel": (
        "stablelm",
        {
            "use_parallel_residual": True,
            "rope_parameters": theta(5000.0, partial_rotary_factor=0.5),
            "tie_word_embeddings": False,
        },
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None, "use_bias": True}),
    # Layers with a state of their own.
    "qwen3_5": ("qwen3_5_text", DELTA_NET),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**DELTA_NET, **SHARED_EXPERT}),
    "qwen3_next": (
        "qwen3_next",
        {
            **DELTA_NET,
            **SHARED_EXPERT,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "olmo_hybrid": (
        "olmo_hybrid",
        {
            **DELTA_NET,
            "rope_parameters": theta(5000.0),
            "linear_num_key_heads": 4,
            "linear_value_head_dim": 16,
            "linear_allow_neg_eigval": True,
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", FULL, "conv"],
            "conv_L_cache": 3,
            "conv_bias": True,
            "rope_parameters": theta(5000.0),
        },
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", FULL, "conv", FULL],
            "conv_L_cache": 3,
            "conv_bias": True,
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "use_expert_bias": True,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "rope_parameters": theta(5000.0),
        },
    ),
    "granitemoehybrid": ("granitemoehybrid", GRANITE_HYBRID),
    "granitemoehybrid, dense, rotated": (
        "granitemoehybrid",
        {
            **GRANITE_HYBRID,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "rope_parameters": theta(5000.0),
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            "rope_parameters": theta(5000.0),
            **MAMBA,
            "mamba_d_ssm": 64,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "lm_head_multiplier": 0.7,
            "embedding_multiplier": 1.5,
            "mlp_multipliers": [0.8, 0.6],
            "key_multiplier": 0.5,
            "attention_out_multiplier": 0.9,
            "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3],
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.4,
        },
    ),
    "falcon_h1, normed first, untied": (
        "falcon_h1",
        {
            **MAMBA,
            "mamba_d_ssm": 64,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "tie_word_embeddings": False,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "layers_block_type": [LINEAR_ATTENTION, "moe", FULL, "mlp"],
            "num_hidden_layers": None,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "conv_kernel": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
    ),
    "nemotron_h, groups of experts": (
        "nemotron_h",
        {
            "layers_block_type": ["moe", LINEAR_ATTENTION, FULL, "moe"],
            "num_hidden_layers": None,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "conv_kernel": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 1,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
    ),
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    # Sinks that are learned, keys that are shared, positions that are bounded.
    "gpt_oss": (
        "gpt_oss",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL] * 2,
            "sliding_window": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {**YARN, "truncate": False},
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "gemma4_text, experts, keys as values": (
        "gemma4_text",
        {
            **GEMMA4,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "use_double_wide_mlp": False,
        },
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {
            "num_hidden_layers": 6,
            "layer_types": [SLIDING, SLIDING, FULL] * 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 24,
            "intermediate_size": [56] * 6,
            "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "altup_num_inputs": 3,
            "altup_active_idx": 0,
            "laurel_rank": 8,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                FULL: theta(100000.0),
                SLIDING: theta(5000.0),
            },
        },
    ),
    "ministral3": (
        "ministral3",
        {
            "sliding_window": None,
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 320,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "moe_layers": [],
            "intermediate_size_mlp": 56,
            "attention_chunk_size": 384,
            "floor_scale": 320,
            "attn_temperature_tuning": True,
            "use_qk_norm": True,
            "rope_parameters": theta(5000.0),
        },
    ),
    "llama4_text, untied, all to each other": (
        "llama4_text",
        {
            "no_rope_layers": [1, 0],
            "moe_layers": [],
            "intermediate_size_mlp": 56,
            "attention_chunk_size": 384,
            "attn_temperature_tuning": False,
            "use_qk_norm": False,
            "tie_word_embeddings": False,
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "pad_token_id": 0,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 320,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5000.0,
                "short_factor": [1.0, 1.2, 1.5, 1.9] * 2,
                "long_factor": [2.0, 3.0, 5.0, 8.0] * 2,
            },
        },
    ),
    "starcoder2, sliding": ("starcoder2", {"sliding_window": 48}),
}


def complete(changed: dict[str, Any]) -> dict[str, Any]:
    ids = {"eos_token_id": 126, "bos_token_id": 125, "pad_token_id": 0}
    return {**TINY_BASE, **ids, **changed}


def settings(name: str) -> tuple[str, dict[str, Any]]:
    family, changed = CASES[name]
    return family, complete(deepcopy(changed))  # transformers changes what it is given


def config_of(name: str) -> dict[str, Any]:
    """The config.json that transformers writes."""
    from transformers import AutoConfig

    family, config = settings(name)
    text = AutoConfig.for_model(family, **config).to_json_string()
    return json.loads(text, object_hook=_number)


def _number(value: dict[str, Any]) -> Any:
    """Infinity, which JSON does not have."""
    return float(value["__float__"]) if "__float__" in value else value


def save_checkpoint(folder: Path, name: str) -> Path:
    return save_family(folder, *settings(name))


def save_family(folder: Path, family: str, config: dict[str, Any]) -> Path:
    """A folder as Hugging Face writes it; no parameter is 0 or 1. Biases of experts,
    which may be buffers, are such that some scores are below 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    with torch.no_grad():
        for x in model.parameters():
            x.add_(torch.randn_like(x) * 0.1)
        saved = model.state_dict()
        for name, x in model.named_buffers():
            if name in saved:
                x.add_(torch.randn_like(x) * 0.1 - 0.5 * name.endswith("bias"))
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder
