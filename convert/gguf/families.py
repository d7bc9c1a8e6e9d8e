"""The families of models that GGUF files hold, as llama.cpp stores them.

A family is data: names of tensors, and a function that reads its settings. Settings
that llama.cpp hard-codes are not in the file; these functions know them too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .rope import rope_parameters
from .source import Source

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED_MLP = {"ffn_up": "mlp.gate_up_proj"}


def _layer_types(source: Source, period: int) -> list[str]:
    """The type of every layer: the file has a list of the sliding layers, or the period
    of the global ones."""
    key, layers = "attention.sliding_window_pattern", source.layers
    name = f"{source.architecture}.{key}"
    if isinstance(source.metadata.values.get(name), list):
        sliding = source.get(key, list)
        if len(sliding) < layers or any(type(x) is not bool for x in sliding):
            raise source.error(f"{name} must be a list of {layers} truth values")
    else:
        period = source.get(key, int, period)
        sliding = [period == 0 or (i + 1) % period != 0 for i in range(layers)]
    return [
        "sliding_attention" if sliding[i] else "full_attention" for i in range(layers)
    ]


def _rms(source: Source) -> dict[str, Any]:
    return {"rms_norm_eps": source.get("attention.layer_norm_rms_epsilon", float)}


def _eps(source: Source) -> float:
    eps: float = source.get("attention.layer_norm_epsilon", float)
    return eps


def _biases(source: Source) -> dict[str, Any]:
    return {
        "attention_bias": source.has_tensor("attn_q.bias"),
        "mlp_bias": source.has_tensor("ffn_up.bias"),
    }


def _llama(source: Source) -> dict[str, Any]:
    biases = _biases(source)
    if not (window := source.get("attention.sliding_window", int, 0)):
        return {**_rms(source), **biases}
    # Mistral is stored as llama too; its window is the difference.
    if any(biases.values()):
        raise source.error("a sliding llama with biases is not supported")
    return {
        **_rms(source),
        "model_type": "mistral",
        "sliding_window": window,
    }


def _gemma(source: Source) -> dict[str, Any]:
    return {**_rms(source), "attention_bias": False}


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
        "layer_types": _layer_types(source, 2),
    }


def _gemma3(source: Source) -> dict[str, Any]:
    window = source.get("attention.sliding_window", int, 0)
    return {
        **_gemma(source),
        **_attention_scale(source, 62),
        "final_logit_softcapping": source.get("final_logit_softcapping", float, None),
        "attn_logit_softcapping": None,
        "sliding_window": window,
        "layer_types": _layer_types(source, 6 if window else 1),
        **_two_ropes(source, 10000.0),
    }


def _two_ropes(source: Source, theta: float) -> dict[str, Any]:
    """Rotary embeddings of global layers, which may be scaled, and of sliding ones.

    Args:
        theta (float): the base of sliding layers that the file may leave out.
    """
    theta = source.get("rope.freq_base_swa", float, theta)
    return {
        "rope_parameters": {
            "full_attention": rope_parameters(source),
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        }
    }


def _phi3(source: Source) -> dict[str, Any]:
    length = source.get("context_length", int)
    original = "rope.scaling.original_context_length"
    return {
        **_rms(source),
        "sliding_window": source.get("attention.sliding_window", int, 0) or None,
        "original_max_position_embeddings": source.get(original, int, length),
        "pad_token_id": None,
    }


def _starcoder2(source: Source) -> dict[str, Any]:
    # A window is not in the file, and llama.cpp uses none.
    return {"norm_epsilon": _eps(source), "use_bias": True, "sliding_window": None}


def _granite(source: Source) -> dict[str, Any]:
    if not source.get("rope.scaling.finetuned", bool, True):
        raise source.error("granite without a rotary embedding is not supported")
    scale = source.get("attention.scale", float, source.head_dim**-0.5)
    return {
        **_rms(source),
        **_biases(source),
        "attention_multiplier": scale,
        "embedding_multiplier": source.get("embedding_scale", float, 1.0),
        "residual_multiplier": source.get("residual_scale", float, 1.0),
        "logits_scaling": source.get("logit_scale", float),
    }


def _cohere(source: Source) -> dict[str, Any]:
    return {
        "layer_norm_eps": _eps(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "use_qk_norm": source.has_tensor("attn_q_norm.weight"),
        "logit_scale": source.get("logit_scale", float, 1.0),
    }


def _cohere2(source: Source) -> dict[str, Any]:
    return {
        "layer_norm_eps": _eps(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "logit_scale": source.get("logit_scale", float),
        "sliding_window": source.get("attention.sliding_window", int),
        "layer_types": _layer_types(source, 4),
    }


def _olmo2(source: Source) -> dict[str, Any]:
    settings = {**_rms(source), "attention_bias": source.has_tensor("attn_q.bias")}
    if not (window := source.get("attention.sliding_window", int, 0)):
        return settings
    return {
        **settings,
        "model_type": "olmo3",
        "sliding_window": window,
        "layer_types": _layer_types(source, 4),
        **_two_ropes(source, rope_parameters(source)["rope_theta"]),
    }


def _smollm3(source: Source) -> dict[str, Any]:
    rotates = [int((i + 1) % 4 != 0) for i in range(source.layers)]
    return {
        **_rms(source),
        **_biases(source),
        "no_rope_layers": rotates,
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * source.layers,
        "pad_token_id": None,
    }


def _exaone4(source: Source) -> dict[str, Any]:
    settings = {**_rms(source), "attention_bias": False, "sliding_window": None}
    if not (window := source.get("attention.sliding_window", int, 0)):
        return {**settings, "layer_types": ["full_attention"] * source.layers}
    settings |= {"sliding_window": window, "layer_types": _layer_types(source, 4)}
    return settings


def _stablelm(source: Source) -> dict[str, Any]:
    parallel = not source.has_tensor("ffn_norm.weight")
    if source.get("use_parallel_residual", bool, parallel) != parallel:
        raise source.error("stablelm.use_parallel_residual does not fit its tensors")
    return {
        "layer_norm_eps": _eps(source),
        "use_qkv_bias": source.has_tensor("attn_q.bias"),
        "use_parallel_residual": parallel,
    }


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores a family of models.

    Args:
        model_type (str): the family in transformers.
        settings (callable): reads the settings of ``config.json`` beside the sizes.
        tensors (dict): names of tensors, in the file and in transformers' model,
            that are not in ``TENSORS``.
        interleaved (bool): whether rows of q and k that are rotated together are
            neighbours.
        norm_offset (float): the offset that was added to the weights of norms.
        partial (bool): whether part of a head may be rotated.
        dtype (str): a type in which the family does not overflow.
    """

    model_type: str
    settings: Callable[[Source], dict[str, Any]]
    tensors: dict[str, str] = field(default_factory=dict)
    interleaved: bool = False
    norm_offset: float = 0.0
    partial: bool = False
    dtype: str = "float16"


GEMMA2 = {**POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
gemma = partial(Architecture, norm_offset=1.0, dtype="bfloat16")
ARCHITECTURES = {
    "llama": Architecture("llama", _llama, interleaved=True),
    "qwen2": Architecture("qwen2", _rms),
    "qwen3": Architecture("qwen3", _rms, QK_NORMS),
    "gemma": gemma("gemma", _gemma),
    "gemma2": gemma("gemma2", _gemma2, GEMMA2),
    "gemma3": gemma("gemma3_text", _gemma3, GEMMA2 | QK_NORMS),
    "phi2": Architecture(
        "phi",
        lambda source: {"layer_norm_eps": _eps(source), "qk_layernorm": False},
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
        lambda source: {**_rms(source), "use_bias": source.has_tensor("attn_q.bias")},
    ),
    "exaone4": Architecture("exaone4", _exaone4, POST_NORMS | QK_NORMS),
    "glm4": Architecture(
        "glm4",
        lambda source: {
            **_rms(source),
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
            **_rms(source),
            **_biases(source),
            "attention_out_bias": source.has_tensor("attn_output.bias"),
        },
        {"post_attention_norm": "post_attention_layernorm"},
    ),
    "stablelm": Architecture("stablelm", _stablelm, partial=True),
    "nemotron": Architecture(
        "nemotron",
        lambda source: {**_biases(source), "norm_eps": _eps(source)},
        norm_offset=1.0,
        partial=True,
    ),
}
