"""Settings that a model file of mlx-lm reads under another name than transformers, and
the bounds of a base.

A function is called as its family, or as what it says, and is given the settings of
transformers; it raises :class:`AllMemError` if the model file cannot obey one.
"""

import math
from typing import Any

from ..errors import AllMemError
from .layers import global_layers


def _check_mixed(config: dict[str, Any]) -> None:
    if config["layer_types"] is None:
        raise AllMemError(
            f"{config['model_type']} whose layers are all of one kind is not supported"
        )


def sliding_pattern(config: dict[str, Any]) -> int:
    """The period of the global layers, as the model files of mlx-lm count it."""
    _check_mixed(config)
    types = config["layer_types"]
    if "full_attention" not in types:
        raise AllMemError("layer_types without full_attention are not supported")
    period = types.index("full_attention") + 1
    if any(
        (kind == "full_attention") != ((i + 1) % period == 0)
        for i, kind in enumerate(types)
    ):
        raise AllMemError(f"layer_types {types} is not supported: it is not periodic")
    return period


def gemma2(config: dict[str, Any]) -> dict[str, Any]:
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config[name]:
            raise AllMemError(f"gemma2 without {name} is not supported")
    return {}


def gemma3(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "sliding_window_pattern": sliding_pattern(config),
    }


def olmo3(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    rope = config["rope_parameters"]
    if len({layers["rope_theta"] for layers in rope.values()}) > 1:
        raise AllMemError("a rope_theta of its own for sliding layers is not supported")
    return {}


def exaone4(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is None:
        if config["given_window"] is not None:  # transformers then rotates nothing
            raise AllMemError(
                f"exaone4 with sliding_window = {config['given_window']!r} and no "
                "layer that slides is not supported; it must be null"
            )
        return {"sliding_window_pattern": None}
    _check_mixed(config)
    kinds = ("G" if kind == "full_attention" else "L" for kind in config["layer_types"])
    return {"sliding_window_pattern": "".join(kinds)}


# How transformers chooses experts, whatever a config.json says.
SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def own_head_dim(config: dict[str, Any]) -> dict[str, Any]:
    """For a model file that cannot do without."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"head_dim": config.get("head_dim") or width}


def shared_head_dim(config: dict[str, Any]) -> dict[str, Any]:
    """For a model file whose heads share the width of the model."""
    width = config["hidden_size"] // config["num_attention_heads"]
    if (head_dim := config.get("head_dim")) not in (None, width):
        raise AllMemError(
            f"{config['model_type']} with head_dim = {head_dim!r} is not supported; it "
            f"must be hidden_size / num_attention_heads, {width}"
        )
    return {"head_dim": width}


def afmoe(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    if config["num_experts_per_tok"] == 1:
        raise AllMemError("afmoe with num_experts_per_tok = 1 is not supported")
    scores = {"score_func": "sigmoid", "route_norm": True}
    return {**scores, "n_group": 1, "topk_group": 1}


def exaone_moe(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    experts = [kind == "sparse" for kind in config["mlp_layer_types"]]
    return {**own_head_dim(config), **SIGMOID, "is_moe_layer": experts}


def laguna(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is not None:
        _check_mixed(config)
    _check_rope_by_kind(config)
    return {
        "qkv_bias": config["attention_bias"],
        "partial_rotary_factor": None,  # rope_parameters has it for each kind
        "moe_router_score_func": "sigmoid",
    }


def mellum(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    _check_rope_by_kind(config)
    if set(config["mlp_layer_types"]) != {"sparse"}:
        raise AllMemError("mellum with mlp_layer_types not all sparse is not supported")
    return {"num_experts": config["num_local_experts"]}


def _check_rope_by_kind(config: dict[str, Any]) -> None:
    kinds = set(config["layer_types"] or ["full_attention"])
    if not kinds <= config["rope_parameters"].keys():
        raise AllMemError(f"rope_parameters must have {' and '.join(sorted(kinds))}")


def mimo_v2_flash(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    rope = config["rope_parameters"]
    parts = {x.get("partial_rotary_factor", 0.334) for x in rope.values()}
    if len(parts) > 1:
        raise AllMemError("partial_rotary_factor must be one for all layers")
    slides = [int(kind == "sliding_attention") for kind in config["layer_types"]]
    return {
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "hybrid_layer_pattern": slides,
        "layernorm_epsilon": config["rms_norm_eps"],
        "moe_layer_freq": [int(x == "sparse") for x in config["mlp_layer_types"]],
        "n_shared_experts": None,
        "partial_rotary_factor": parts.pop(),
        "sliding_window_size": config["sliding_window"],
        "swa_head_dim": config["head_dim"],
        "swa_num_attention_heads": config["num_attention_heads"],
        "swa_num_key_value_heads": 2 * config["num_key_value_heads"],
        "swa_rope_theta": rope["sliding_attention"]["rope_theta"],
        "swa_v_head_dim": config["v_head_dim"],
        **SIGMOID,
    }


def minimax_m2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "rotary_dim": int(config["head_dim"] * config["partial_rotary_factor"]),
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "use_qk_norm": True,
    }


def phimoe(config: dict[str, Any]) -> dict[str, Any]:
    """Its longrope has scales of its own."""
    scaling = config["rope_scaling"]
    if scaling is not None:
        names = ("short_mscale", "long_mscale")
        scales = {name: config["rope_parameters"][name] for name in names}
        scaling = {**scaling, **scales}
    return {**shared_head_dim(config), "rope_scaling": scaling}


def qwen3_moe(config: dict[str, Any]) -> dict[str, Any]:
    return {**own_head_dim(config), "num_experts": config["num_local_experts"]}


def solar_open(config: dict[str, Any]) -> dict[str, Any]:
    """As glm4_moe without dense layers, and without norms of queries and keys."""
    return {
        **SIGMOID,
        "first_k_dense_replace": 0,
        "intermediate_size": config.get("intermediate_size", 0),  # of no layer
        "use_qk_norm": False,
    }


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Of a model file that reads them in one, as transformers has them."""
    scaling = config["rope_scaling"] or {"type": "default", "rope_type": "default"}
    names = ("rope_theta", "partial_rotary_factor")
    return {**scaling, **{name: config[name] for name in names}}


def delta_net(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "full_attention_interval": sliding_pattern(config),
        "rope_parameters": rope_parameters(config),
    }


def gemma3n(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]["sliding_attention"]
    return {"rope_local_base_freq": rope["rope_theta"]}


def gemma4(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the global layers, which transformers has layer by layer."""
    _check_mixed(config)
    own = config.get("per_layer_config") or {}
    sizes = [
        own.get(f"{i:02}", own.get(i, own.get(str(i), {})))
        for i in global_layers({**config, "num_kv_shared_layers": 0})
    ]
    if any(size != sizes[0] for size in sizes) or len(own) != len(sizes):
        raise AllMemError("gemma4_text with layers of many sizes is not supported")
    heads = config["num_key_value_heads"]
    return {
        "global_head_dim": sizes[0].get("head_dim", config["head_dim"]),
        "num_global_key_value_heads": sizes[0].get("num_key_value_heads", heads),
        "rope_parameters": config["rope_parameters"],
    }


def granitemoehybrid(config: dict[str, Any]) -> dict[str, Any]:
    names = {"full_attention": "attention", "linear_attention": "mamba"}
    types = config["layer_types"] or ["full_attention"] * config["num_hidden_layers"]
    rotates = config.get("position_embedding_type") == "rope"
    dense = {"intermediate_size": config["shared_intermediate_size"]}
    return {
        **({} if config["num_local_experts"] else dense),
        "layer_types": [names[kind] for kind in types],
        "position_embedding_type": "rope" if rotates else "nope",
    }


def jamba(config: dict[str, Any]) -> dict[str, Any]:
    period, offset = config["attn_layer_period"], config["attn_layer_offset"]
    layers = range(config["num_hidden_layers"])
    return {
        "layer_types": [
            "full_attention" if i % period == offset else "linear_attention"
            for i in layers
        ]
    }


def lfm2(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    return {"block_dim": config["hidden_size"]}


def nemotron_h(config: dict[str, Any]) -> dict[str, Any]:
    if "linear_attention" not in (config["layer_types"] or ()):
        raise AllMemError("nemotron_h without a layer of Mamba is not supported")
    return {"time_step_limit": [config["time_step_min"], math.inf]}


def ministral3(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is not None:
        raise AllMemError("ministral3 with a sliding_window is not supported")
    return {"rope_parameters": config["rope_parameters"]}


def original_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which longrope has other frequencies."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "longrope":
        return None
    length: int = scaling["original_max_position_embeddings"]
    return length


def unstretched_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which a dynamic rotary embedding is not the plain one."""
    if config["rope_parameters"].get("rope_type") != "dynamic":
        return None
    length: int = config["max_position_embeddings"]
    return length


def unscaled_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which Ministral 3 scales its queries."""
    rope = config["rope_parameters"]
    if not rope.get("llama_4_scaling_beta"):
        return None
    length: int = rope["original_max_position_embeddings"]
    return length


def chunk_length(config: dict[str, Any]) -> int:
    """Tokens within which Llama 4 attends to all, and does not scale its queries."""
    length: int = config["attention_chunk_size"]
    if config["attn_temperature_tuning"]:
        length = min(length, int(config["floor_scale"]) - 1)
    return length


def llama4(config: dict[str, Any]) -> dict[str, Any]:
    if config["moe_layers"]:
        raise AllMemError("llama4_text with a mixture of experts is not supported")
    return {"layer_types": None}
