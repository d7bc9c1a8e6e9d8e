"""Settings of ``config.json`` that families share, from the metadata of a GGUF file."""

from typing import Any

from .rope import rope_parameters
from .source import Source

FULL, SLIDING = "full_attention", "sliding_attention"
MAMBA = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3  # values of expert_gating_func


def layer_types(source: Source, period: int) -> list[str]:
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
    return [SLIDING if sliding[i] else FULL for i in range(layers)]


def rms(source: Source) -> dict[str, Any]:
    return {"rms_norm_eps": rms_epsilon(source)}


def rms_epsilon(source: Source) -> float:
    found: float = source.get("attention.layer_norm_rms_epsilon", float)
    return found


def epsilon(source: Source) -> float:
    found: float = source.get("attention.layer_norm_epsilon", float)
    return found


def biases(source: Source) -> dict[str, Any]:
    return {
        "attention_bias": source.has_tensor("attn_q.bias"),
        "mlp_bias": source.has_tensor("ffn_up.bias"),
    }


def two_ropes(source: Source, theta: float) -> dict[str, Any]:
    """Rotary embeddings of global layers, which may be scaled, and of sliding ones.

    Args:
        source (Source): the file.
        theta (float): the base of sliding layers that the file may leave out.
    """
    theta = source.get("rope.freq_base_swa", float, theta)
    return {
        "rope_parameters": {
            FULL: rope_parameters(source),
            SLIDING: {"rope_type": "default", "rope_theta": theta},
        }
    }


def granite(source: Source) -> dict[str, Any]:
    """What every Granite has."""
    if not source.has_tensor("ssm_a"):  # sizes of layers that a hybrid may have
        for key in MAMBA:
            source.get(f"ssm.{key}", int, 0)
    scale = source.get("attention.scale", float, source.head_dim**-0.5)
    return {
        **rms(source),
        "attention_multiplier": scale,
        "embedding_multiplier": source.get("embedding_scale", float, 1.0),
        "residual_multiplier": source.get("residual_scale", float, 1.0),
        "logits_scaling": source.get("logit_scale", float),
    }


def routing(source: Source, gating: int = SOFTMAX) -> tuple[int, int]:
    """How many experts there are, and how many of them a token gets.

    Args:
        source (Source): the file.
        gating (int): the function of the family's router, if it is another.
    """
    if (found := source.get("expert_gating_func", int, gating)) != gating:
        raise source.error(
            f"{source.architecture}.expert_gating_func = {found} is not supported"
        )
    count, used = source.get("expert_count", int), source.get("expert_used_count", int)
    if not 0 < used <= count:
        raise source.error(f"{used} of {count} experts for a token is impossible")
    return count, used
