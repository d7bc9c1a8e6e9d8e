"""Tiny checkpoints of every family that a GGUF file can hold.

They are those of ``family_cases``, but for settings that llama.cpp knows by heart and
does not write.
"""

from typing import Any

from family_cases import CASES as ALL
from family_cases import FULL, LINEAR, SLIDING, theta

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
CASES = {name: ALL[name] for name in SAME} | OWN
