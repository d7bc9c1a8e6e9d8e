"""The families of models that GGUF files hold, as llama.cpp stores them.

A family is data: names of tensors, and a function that reads its settings. Settings
that llama.cpp hard-codes are not in the file; these functions know them too. Here are
those without experts and without recurrent layers.
"""

from functools import partial
from typing import Any

from .architecture import (
    FUSED_MLP,
    POST_ATTENTION,
    POST_NORMS,
    QK_NORMS,
    Architecture,
)
from .delta_net import DELTA_NET
from .gemma4 import GEMMA4
from .mixtures import MIXTRAL, MIXTURES, mixtral
from .recurrent import RECURRENT
from .rope import rope_parameters
from .settings import biases, epsilon, granite, layer_types, rms, two_ropes
from .source import Source


def _llama(source: Source) -> dict[str, Any]:
    found = biases(source)
    if source.get("expert_count", int, 0):
        return mixtral(source)
    if not (window := source.get("attention.sliding_window", int, 0)):
        return {**rms(source), **found}
    # Mistral is stored as llama too; its window is the difference.
    if any(found.values()):
        raise source.error("a sliding llama with biases is not supported")
    return {
        **rms(source),
        "model_type": "mistral",
        "sliding_window": window,
    }


def _gemma(source: Source) -> dict[str, Any]:
    return {**rms(source), "attention_bias": False}


def _attention_scale(source: Source, largest: int) -> dict[str, Any]:
    """Gemma's scale of attention: the size of a head or, in the largest model, the
    share of the width."""
    share = source.get("embedding_length", int) // source.get(
        "attention.head_count", int
    )
    return {
        "query_pre_attn_scalar": share if source.layers == largest else source.head_dim
    }


def _gemma2(source: Source) -> dict[str, Any]:
    return {
        **_gemma(source),
        **_attention_scale(source, 46),
        "attn_logit_softcapping": source.get("attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": source.get("final_logit_softcapping", float, 30.0),
        "sliding_window": source.get("attention.sliding_window", int, 4096),
        "layer_types": layer_types(source, 2),
    }


def _gemma3(source: Source) -> dict[str, Any]:
    window = source.get("attention.sliding_window", int, 0)
    return {
        **_gemma(source),
        **_attention_scale(source, 62),
        "final_logit_softcapping": source.get("final_logit_softcapping", float, None),
        "attn_logit_softcapping": None,
        "sliding_window": window,
        "layer_types": layer_types(source, 6 if window else 1),
        **two_ropes(source, 10000.0),
    }


def _phi3(source: Source) -> dict[str, Any]:
    length = source.get("context_length", int)
    original = "rope.scaling.original_context_length"
    return {
        **rms(source),
        "sliding_window": source.get("attention.sliding_window", int, 0) or None,
        "original_max_position_embeddings": source.get(original, int, length),
        "pad_token_id": None,
    }


def _starcoder2(source: Source) -> dict[str, Any]:
    # A window is not in the file, and llama.cpp uses none.
    return {"norm_epsilon": epsilon(source), "use_bias": True, "sliding_window": None}


def _granite(source: Source) -> dict[str, Any]:
    if not source.get("rope.scaling.finetuned", bool, True):
        raise source.error("granite without a rotary embedding is not supported")
    source.get("expert_shared_feed_forward_length", int, 0)  # of no experts
    return {**granite(source), **biases(source)}


def _cohere(source: Source) -> dict[str, Any]:
    return {
        "layer_norm_eps": epsilon(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "use_qk_norm": source.has_tensor("attn_q_norm.weight"),
        "logit_scale": source.get("logit_scale", float, 1.0),
    }


def _cohere2(source: Source) -> dict[str, Any]:
    return {
        "layer_norm_eps": epsilon(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "logit_scale": source.get("logit_scale", float),
        "sliding_window": source.get("attention.sliding_window", int),
        "layer_types": layer_types(source, 4),
    }


def _olmo2(source: Source) -> dict[str, Any]:
    settings = {**rms(source), "attention_bias": source.has_tensor("attn_q.bias")}
    if not (window := source.get("attention.sliding_window", int, 0)):
        return settings
    return {
        **settings,
        "model_type": "olmo3",
        "sliding_window": window,
        "layer_types": layer_types(source, 4),
        **two_ropes(source, rope_parameters(source)["rope_theta"]),
    }


def _smollm3(source: Source) -> dict[str, Any]:
    rotates = [int((i + 1) % 4 != 0) for i in range(source.layers)]
    return {
        **rms(source),
        **biases(source),
        "no_rope_layers": rotates,
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * source.layers,
        "pad_token_id": None,
    }


def _exaone4(source: Source) -> dict[str, Any]:
    settings = {**rms(source), "attention_bias": False, "sliding_window": None}
    if not (window := source.get("attention.sliding_window", int, 0)):
        return {**settings, "layer_types": ["full_attention"] * source.layers}
    settings |= {"sliding_window": window, "layer_types": layer_types(source, 4)}
    return settings


def _stablelm(source: Source) -> dict[str, Any]:
    parallel = not source.has_tensor("ffn_norm.weight")
    if source.get("use_parallel_residual", bool, parallel) != parallel:
        raise source.error("stablelm.use_parallel_residual does not fit its tensors")
    return {
        "layer_norm_eps": epsilon(source),
        "use_qkv_bias": source.has_tensor("attn_q.bias"),
        "use_parallel_residual": parallel,
    }


GEMMA2 = {**POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
gemma = partial(Architecture, norm_offset=1.0, dtype="bfloat16")
ARCHITECTURES = {
    "llama": Architecture("llama", _llama, MIXTRAL, interleaved=True),
    "qwen2": Architecture("qwen2", rms),
    "qwen3": Architecture("qwen3", rms, QK_NORMS),
    "gemma": gemma("gemma", _gemma),
    "gemma2": gemma("gemma2", _gemma2, GEMMA2),
    "gemma3": gemma("gemma3_text", _gemma3, GEMMA2 | QK_NORMS),
    "phi2": Architecture(
        "phi",
        lambda source: {"layer_norm_eps": epsilon(source), "qk_layernorm": False},
        {
            "output_norm": "model.final_layernorm",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        partial=True,
    ),
    "phi3": Architecture(
        "phi3", _phi3, {"attn_qkv": "self_attn.qkv_proj", **FUSED_MLP}, partial=True
    ),
    "starcoder2": Architecture(
        "starcoder2", _starcoder2, {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "granite": Architecture("granite", _granite, interleaved=True),
    "command-r": Architecture("cohere", _cohere, QK_NORMS),
    "cohere2": Architecture("cohere2", _cohere2),
    "olmo2": Architecture("olmo2", _olmo2, POST_NORMS | QK_NORMS),
    "smollm3": Architecture("smollm3", _smollm3, interleaved=True),
    "ernie4_5": Architecture(
        "ernie4_5",
        lambda source: {**rms(source), "use_bias": source.has_tensor("attn_q.bias")},
    ),
    "exaone4": Architecture("exaone4", _exaone4, POST_NORMS | QK_NORMS),
    "glm4": Architecture(
        "glm4",
        lambda source: {
            **rms(source),
            "attention_bias": source.has_tensor("attn_q.bias"),
            "pad_token_id": None,
        },
        {
            **FUSED_MLP,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        partial=True,
    ),
    "seed_oss": Architecture(
        "seed_oss",
        lambda source: {
            **rms(source),
            **biases(source),
            "attention_out_bias": source.has_tensor("attn_output.bias"),
        },
        POST_ATTENTION,
    ),
    "stablelm": Architecture("stablelm", _stablelm, partial=True),
    "nemotron": Architecture(
        "nemotron",
        lambda source: {**biases(source), "norm_eps": epsilon(source)},
        norm_offset=1.0,
        partial=True,
    ),
    **MIXTURES,
    **DELTA_NET,
    **RECURRENT,
    **GEMMA4,
}
