"""The base models whose attention layers can become hybrids.

A family is a model file of mlx-lm: a decoder with softmax attention over rotated
queries and keys. Its code for projections, norms, rotary embedding, biases, soft caps,
scales, experts and recurrent layers is used as it is; this module lists how it differs.
``docs/conversion.md`` has the table.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import layouts, patches, towers
from .errors import AllMemError
from .layouts import Weights

# A rotary embedding that only turns and scales, so that turning back is exact.
# "dynamic" depends on the length of what was read.
SCALED = ("default", "linear", "llama3", "yarn")


class Names(NamedTuple):
    """What a model file calls its parts.

    Args:
        body (str): all but the head.
        embedding (str): the token embedding, in the body.
        attention (str): the attention, in a layer.
        norm (str): the norm after the last layer, in the body.
    """

    body: str = "model"
    embedding: str = "embed_tokens"
    attention: str = "self_attn"
    norm: str = "norm"


@dataclass(frozen=True)
class Family:
    """How a model file of mlx-lm fits the hybrid layer, and which settings it lacks.

    Args:
        module (str): the model file, if it is not called as the family.
        rope_types (tuple): types of rotary embedding that the model file obeys.
        fixed (dict): settings of transformers that the model file does not read, and
            the values it stands for. A setting that is not listed stands for
            transformers' default.
        settings (callable): the settings that the model file reads under another name
            than transformers, from the settings of transformers.
        layout (callable): translates the weights that the model file does not, given
            the configuration too.
        patch (callable): patches the model where the model file computes otherwise
            than transformers, given its configuration too.
        array_mask (bool): whether its attention wants every mask as an array.
        rotates (callable): whether an attention layer rotates queries and keys.
        normed (bool): whether the layer norms the input of its attention, rather than
            the output.
        recurrent (str): what its layers without attention are, or the branch beside it,
            if their state has a fixed size of its own.
        names (Names): what the model file calls its parts.
        classes (callable): model and settings, where the model file's own ``Model`` is
            a wrapper.
        adapters (tuple): classes around and within the hybrid's attention, where the
            model file calls its attention otherwise than ``(x, mask, cache)``.
        borrows (callable): whether an attention layer has no keys and values of its
            own, if the family has such layers.
        rope_settings (tuple): settings of a rotary embedding that the model file reads,
            beyond what others do.
        layer_types (dict): types of layers in transformers that are other types here,
            within :attr:`reach`.
        own_settings (tuple): settings that this module reads, and the model file does
            not.
        distils (bool): whether ``model.model`` gives the last hidden states, of which
            MLX can distil.
        reach (callable): tokens beyond which the base computes otherwise: another
            rotary embedding, or another scale. Bounded positions stay below.
    """

    module: str | None = None
    rope_types: tuple[str, ...] = ("default",)
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    layout: Callable[[Weights, dict[str, Any]], Weights] = lambda weights, _: weights
    patch: Callable[[Any, dict[str, Any]], None] = lambda model, config: None
    array_mask: bool = False
    rotates: Callable[[Any], bool] = lambda attention: True
    normed: bool = True
    recurrent: str | None = None
    names: Names = Names()
    classes: Callable[[], tuple[Any, Any]] | None = None
    adapters: tuple[type | None, type | None] = (None, None)
    borrows: Callable[[Any], bool] | None = None
    rope_settings: tuple[str, ...] = ()
    layer_types: dict[str, str] = field(default_factory=dict)
    own_settings: tuple[str, ...] = ()
    distils: bool = True
    reach: Callable[[dict[str, Any]], int | None] = lambda config: None


def _check_mixed(config: dict[str, Any]) -> None:
    if config["layer_types"] is None:
        raise AllMemError(
            f"{config['model_type']} whose layers are all of one kind is not supported"
        )


def _sliding_pattern(config: dict[str, Any]) -> int:
    """The period of the global layers, as the model files of mlx-lm count it."""
    _check_mixed(config)
    types = config["layer_types"]
    period = types.index("full_attention") + 1
    if any(
        (kind == "full_attention") != ((i + 1) % period == 0)
        for i, kind in enumerate(types)
    ):
        raise AllMemError(f"layer_types {types} is not supported: it is not periodic")
    return period


def _gemma2(config: dict[str, Any]) -> dict[str, Any]:
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config[name]:
            raise AllMemError(f"gemma2 without {name} is not supported")
    return {}


def _gemma3(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "sliding_window_pattern": _sliding_pattern(config),
    }


def _olmo3(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    rope = config["rope_parameters"]
    if len({layers["rope_theta"] for layers in rope.values()}) > 1:
        raise AllMemError("a rope_theta of its own for sliding layers is not supported")
    return {}


def _exaone4(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is None:
        return {"sliding_window_pattern": None}
    kinds = ("G" if kind == "full_attention" else "L" for kind in config["layer_types"])
    return {"sliding_window_pattern": "".join(kinds)}


# How transformers chooses experts, whatever a config.json says.
SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def _own_head_dim(config: dict[str, Any]) -> dict[str, Any]:
    """For a model file that cannot do without."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"head_dim": config.get("head_dim") or width}


def _shared_head_dim(config: dict[str, Any]) -> dict[str, Any]:
    """For a model file whose heads share the width of the model."""
    width = config["hidden_size"] // config["num_attention_heads"]
    if (head_dim := config.get("head_dim")) not in (None, width):
        raise AllMemError(
            f"{config['model_type']} with head_dim = {head_dim!r} is not supported; it "
            f"must be hidden_size / num_attention_heads, {width}"
        )
    return {"head_dim": width}


def _afmoe(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    if config["num_experts_per_tok"] == 1:
        raise AllMemError("afmoe with num_experts_per_tok = 1 is not supported")
    scores = {"score_func": "sigmoid", "route_norm": True}
    return {**scores, "n_group": 1, "topk_group": 1}


def _exaone_moe(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    experts = [kind == "sparse" for kind in config["mlp_layer_types"]]
    return {**_own_head_dim(config), **SIGMOID, "is_moe_layer": experts}


def _laguna(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is not None:
        _check_mixed(config)
    _check_rope_by_kind(config)
    return {
        "qkv_bias": config["attention_bias"],
        "partial_rotary_factor": None,  # rope_parameters has it for each kind
        "moe_router_score_func": "sigmoid",
    }


def _mellum(config: dict[str, Any]) -> dict[str, Any]:
    _check_mixed(config)
    _check_rope_by_kind(config)
    if set(config["mlp_layer_types"]) != {"sparse"}:
        raise AllMemError("mellum with mlp_layer_types not all sparse is not supported")
    return {"num_experts": config["num_local_experts"]}


def _check_rope_by_kind(config: dict[str, Any]) -> None:
    kinds = set(config["layer_types"] or ["full_attention"])
    if not kinds <= config["rope_parameters"].keys():
        raise AllMemError(f"rope_parameters must have {' and '.join(sorted(kinds))}")


def _mimo_v2_flash(config: dict[str, Any]) -> dict[str, Any]:
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


def _minimax_m2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "rotary_dim": int(config["head_dim"] * config["partial_rotary_factor"]),
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "use_qk_norm": True,
    }


def _phimoe(config: dict[str, Any]) -> dict[str, Any]:
    """Its longrope has scales of its own."""
    scaling = config["rope_scaling"]
    if scaling is not None:
        names = ("short_mscale", "long_mscale")
        scales = {name: config["rope_parameters"][name] for name in names}
        scaling = {**scaling, **scales}
    return {**_shared_head_dim(config), "rope_scaling": scaling}


def _qwen3_moe(config: dict[str, Any]) -> dict[str, Any]:
    return {**_own_head_dim(config), "num_experts": config["num_local_experts"]}


def _solar_open(config: dict[str, Any]) -> dict[str, Any]:
    """As glm4_moe without dense layers, and without norms of queries and keys."""
    return {
        **SIGMOID,
        "first_k_dense_replace": 0,
        "intermediate_size": config.get("intermediate_size", 0),  # of no layer
        "use_qk_norm": False,
    }


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Of a model file that reads them in one, as transformers has them."""
    scaling = config["rope_scaling"] or {"type": "default", "rope_type": "default"}
    names = ("rope_theta", "partial_rotary_factor")
    return {**scaling, **{name: config[name] for name in names}}


def _delta_net(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "full_attention_interval": _sliding_pattern(config),
        "rope_parameters": _rope_parameters(config),
    }


def _gemma3n(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]["sliding_attention"]
    return {"rope_local_base_freq": rope["rope_theta"]}


def _gemma4(config: dict[str, Any]) -> dict[str, Any]:
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


def _granitemoehybrid(config: dict[str, Any]) -> dict[str, Any]:
    names = {"full_attention": "attention", "linear_attention": "mamba"}
    types = config["layer_types"] or ["full_attention"] * config["num_hidden_layers"]
    rotates = config.get("position_embedding_type") == "rope"
    dense = {"intermediate_size": config["shared_intermediate_size"]}
    return {
        **({} if config["num_local_experts"] else dense),
        "layer_types": [names[kind] for kind in types],
        "position_embedding_type": "rope" if rotates else "nope",
    }


def _jamba(config: dict[str, Any]) -> dict[str, Any]:
    period, offset = config["attn_layer_period"], config["attn_layer_offset"]
    layers = range(config["num_hidden_layers"])
    return {
        "layer_types": [
            "full_attention" if i % period == offset else "linear_attention"
            for i in layers
        ]
    }


def _lfm2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_dim": config["hidden_size"],
        "layer_types": config["layer_types"]
        or ["full_attention"] * config["num_hidden_layers"],
    }


def _ministral3(config: dict[str, Any]) -> dict[str, Any]:
    if config["sliding_window"] is not None:
        raise AllMemError("ministral3 with a sliding_window is not supported")
    return {"rope_parameters": config["rope_parameters"]}


def _original_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which longrope has other frequencies."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "longrope":
        return None
    length: int = scaling["original_max_position_embeddings"]
    return length


def _unstretched_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which a dynamic rotary embedding is not the plain one."""
    if config["rope_parameters"].get("rope_type") != "dynamic":
        return None
    length: int = config["max_position_embeddings"]
    return length


def _unscaled_length(config: dict[str, Any]) -> int | None:
    """Tokens beyond which Ministral 3 scales its queries."""
    rope = config["rope_parameters"]
    if not rope.get("llama_4_scaling_beta"):
        return None
    length: int = rope["original_max_position_embeddings"]
    return length


def _chunk_length(config: dict[str, Any]) -> int:
    """Tokens within which Llama 4 attends to all, and does not scale its queries."""
    length: int = config["attention_chunk_size"]
    if config["attn_temperature_tuning"]:
        length = min(length, int(config["floor_scale"]) - 1)
    return length


def _llama4(config: dict[str, Any]) -> dict[str, Any]:
    if config["moe_layers"]:
        raise AllMemError("llama4_text with a mixture of experts is not supported")
    return {"layer_types": None}


FAMILIES = {
    "afmoe": Family(
        rope_types=SCALED,
        settings=_afmoe,
        own_settings=("global_attn_every_n_layers",),
        rotates=lambda attention: attention.is_local_attention,
    ),
    "apertus": Family(
        rope_types=SCALED,
        fixed={"attention_bias": (False,), "mlp_bias": (False,)},
        settings=lambda c: {"post_norm": False, "qk_norm": True, "mlp_bias": False},
    ),
    "cohere": Family(),
    "cohere2": Family(
        settings=lambda c: {"sliding_window_pattern": _sliding_pattern(c)},
        rotates=lambda attention: attention.use_sliding_window,
    ),
    "dots1": Family(
        rope_types=SCALED,
        fixed={"attention_bias": (False,)},
        settings=lambda c: {"mlp_bias": False, "scoring_func": "sigmoid"},
        patch=patches.sigmoid_router,
    ),
    "ernie4_5": Family(),
    "ernie4_5_moe": Family(
        fixed={"use_bias": (False,)},
        settings=lambda c: {"moe_gate_act": "softmax"},
        layout=layouts.ernie4_5_moe,
        patch=patches.ernie4_5_moe,
    ),
    "falcon_h1": Family(
        recurrent="Mamba-2",
        fixed={
            # mlx-lm folds multipliers into weights, and leaves biases as they are.
            "attention_bias": (False,),
            "attention_in_multiplier": (1.0,),
            "mamba_proj_bias": (False,),
            "mlp_bias": (False,),
            "projectors_bias": (False,),
        },
        patch=patches.falcon_h1,
        names=Names(norm="final_layernorm"),
    ),
    "exaone4": Family(
        rope_types=SCALED,
        settings=_exaone4,
        rotates=lambda attention: attention.use_rope,
        normed=False,
    ),
    "exaone_moe": Family(
        rope_types=SCALED,
        settings=_exaone_moe,
        own_settings=(
            "mlp_layer_types",
            "first_k_dense_replace",
            "sliding_window_pattern",
        ),
        patch=patches.sigmoid_router,
        rotates=lambda attention: attention.use_rope,
    ),
    "gemma": Family(patch=patches.gemma),
    "gemma2": Family(settings=_gemma2, array_mask=True),
    "gemma3_text": Family(rope_types=SCALED, settings=_gemma3, patch=patches.gemma3),
    "gemma3n_text": Family(
        settings=_gemma3n,
        classes=towers.gemma3n,
        distils=False,
        patch=patches.gemma3n,
        layout=layouts.gemma3n,
        adapters=(patches.Gemma3nOuter, patches.Gemma3nInner),
        borrows=lambda attention: attention.is_kv_shared_layer,
    ),
    "gemma4_text": Family(
        rope_types=("default", "proportional"),
        settings=_gemma4,
        own_settings=("per_layer_config",),
        adapters=(patches.Gemma4Outer, patches.Gemma4Inner),
        borrows=lambda attention: not attention.has_kv,
    ),
    "glm": Family(
        rope_types=SCALED, own_settings=("partial_rotary_factor",), patch=patches.glm
    ),
    "glm4": Family(),
    "glm4_moe": Family(
        rope_types=SCALED,
        fixed={"tie_word_embeddings": (False,)},
        settings=lambda c: {**_own_head_dim(c), **SIGMOID},
        patch=patches.glm4_moe,
    ),
    "gpt_oss": Family(
        rope_types=SCALED, fixed={"attention_bias": (True,)}, layout=layouts.gpt_oss
    ),
    "granite": Family(rope_types=SCALED),
    "granitemoe": Family(rope_types=SCALED, settings=_shared_head_dim),
    "granitemoehybrid": Family(
        recurrent="Mamba-2",
        settings=_granitemoehybrid,
        patch=patches.granitemoehybrid,
        rotates=lambda attention: attention.rope is not None,
    ),
    "helium": Family(patch=patches.helium),
    "internlm3": Family(
        "llama",
        rope_types=(*SCALED, "dynamic"),
        own_settings=("rope_parameters",),
        reach=_unstretched_length,
    ),
    "iquestcoder": Family("llama", rope_types=SCALED),
    "jamba": Family(
        recurrent="Mamba",
        settings=_jamba,
        patch=patches.jamba,
        rotates=lambda attention: False,
        names=Names(norm="final_layernorm"),
    ),
    "laguna": Family(
        rope_types=SCALED,
        fixed={"gating": (True, "per-head")},
        settings=_laguna,
    ),
    "lfm2": Family(
        recurrent="convolution",
        settings=_lfm2,
        names=Names(norm="embedding_norm"),
    ),
    "lfm2_moe": Family(
        recurrent="convolution",
        settings=_lfm2,
        names=Names(norm="embedding_norm"),
    ),
    "llama": Family(rope_types=SCALED),
    "llama4_text": Family(
        settings=_llama4,
        layout=layouts.llama4,
        patch=patches.llama4,
        layer_types={"chunked_attention": "full_attention"},
        rotates=lambda attention: attention.use_rope,
        reach=_chunk_length,
        own_settings=(
            "attention_chunk_size",
            "attn_scale",
            "attn_temperature_tuning",
            "floor_scale",
            "moe_layers",
        ),
    ),
    "mellum": Family(
        rope_types=("default", "llama3", "yarn"),
        settings=_mellum,
        own_settings=("mlp_layer_types", "num_local_experts"),
    ),
    "mimo_v2_flash": Family(
        fixed={"tie_word_embeddings": (False,)},
        settings=_mimo_v2_flash,
        own_settings=("mlp_layer_types", "rms_norm_eps", "partial_rotary_factor"),
        patch=patches.sigmoid_router,
    ),
    "minimax_m2": Family(
        "minimax",
        rope_types=SCALED,
        settings=_minimax_m2,
        classes=towers.minimax_m2,
        own_settings=("partial_rotary_factor",),
        patch=patches.scaled_rope,
    ),
    "ministral3": Family(
        rope_types=("yarn",),
        rope_settings=("llama_4_scaling_beta", "max_position_embeddings"),
        settings=_ministral3,
        adapters=(patches.Ministral3Outer, patches.Ministral3Inner),
        reach=_unscaled_length,
    ),
    "mistral": Family("llama", rope_types=SCALED),
    "mixtral": Family(
        rope_types=SCALED,
        settings=_shared_head_dim,
        own_settings=("head_dim",),
        patch=patches.scaled_rope,
    ),
    "nemotron": Family(
        rope_types=("default", "linear"), fixed={"hidden_act": ("relu2",)}
    ),
    "nemotron_h": Family(
        recurrent="Mamba-2",
        settings=lambda c: {"time_step_limit": [c["time_step_min"], math.inf]},
        rotates=lambda attention: False,
        distils=False,
        names=Names("backbone", "embeddings", "mixer", "norm_f"),
    ),
    "olmo_hybrid": Family(
        recurrent="gated DeltaNet",
        settings=lambda c: {"rope_parameters": c["rope_parameters"]},
        layout=layouts.olmo_hybrid,
        rotates=lambda attention: attention.rope is not None,
        normed=False,
    ),
    "olmo2": Family(rope_types=SCALED, normed=False),
    "olmo3": Family(rope_types=SCALED, settings=_olmo3, normed=False),
    "olmoe": Family(rope_types=SCALED, settings=lambda c: {"mlp_bias": False}),
    "phi": Family(names=Names(norm="final_layernorm")),
    "phi3": Family(rope_types=("default", "longrope"), reach=_original_length),
    "phimoe": Family(
        rope_types=("default", "longrope"),
        rope_settings=("short_mscale", "long_mscale"),
        fixed={
            "attention_bias": (True,),
            "lm_head_bias": (True,),
            "num_experts_per_tok": (2,),
        },
        settings=_phimoe,
        reach=_original_length,
    ),
    "qwen2": Family(rope_types=SCALED),
    "qwen2_moe": Family(
        rope_types=("default", "linear"),
        fixed={"tie_word_embeddings": (False,)},
        settings=_shared_head_dim,
        patch=patches.scaled_rope,
    ),
    "qwen3": Family(rope_types=SCALED),
    "qwen3_moe": Family(
        rope_types=SCALED,
        settings=_qwen3_moe,
        own_settings=("num_local_experts",),
        layout=layouts.qwen3_moe,
        patch=patches.scaled_rope,
    ),
    "qwen3_5_text": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=_delta_net,
        classes=towers.qwen3_5,
    ),
    "qwen3_5_moe_text": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=_delta_net,
        classes=towers.qwen3_5,
        layout=layouts.qwen3_5_moe,
    ),
    "qwen3_next": Family(
        recurrent="gated DeltaNet",
        rope_types=SCALED,
        settings=lambda c: {"full_attention_interval": _sliding_pattern(c)},
    ),
    "seed_oss": Family(rope_types=SCALED),
    "smollm3": Family(rope_types=SCALED),
    "solar_open": Family(
        rope_types=SCALED,
        fixed={
            "partial_rotary_factor": (1.0,),
            "tie_word_embeddings": (False,),
        },
        settings=_solar_open,
        patch=patches.glm4_moe,
    ),
    "stablelm": Family(),
    "starcoder2": Family(patch=patches.starcoder2),
}
# Sizes that every base states in its config.json, and more than any model has.
SIZES = {
    "hidden_size": 10**6,
    "num_hidden_layers": 10**3,
    "num_attention_heads": 10**4,
    "vocab_size": 10**8,
}
# Models with towers beside the language model, which alone is converted.
WRAPPERS = {
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4_unified",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
}
# Language models of wrappers that are a family under another name, and settings that
# they stand for.
TEXT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4_unified_text": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen2_vl_text": ("qwen2", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_vl_text": ("qwen3", {}),
}


def family_of(kind: Any) -> Family:
    """
    Args:
        kind (str): ``model_type`` of a base's ``config.json``.

    Raises:
        AllMemError: if no such family is known.
    """
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise AllMemError(
            f"model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def check_sizes(config: dict[str, Any]) -> None:
    """
    Args:
        config (dict): the base's configuration, complete.

    Raises:
        AllMemError: if it does not state its sizes.
    """
    for name, too_many in SIZES.items():
        if type(config.get(name)) is not int or not 0 < config[name] < too_many:
            raise AllMemError(
                f"{name} is {config.get(name)!r}; it must be a whole number above 0 "
                f"and below {too_many}"
            )


def model_classes(kind: str) -> tuple[Any, Any]:
    """mlx-lm's classes of a family's model and of its settings."""
    family = family_of(kind)
    if family.classes is not None:
        return family.classes()
    arch = importlib.import_module(f"mlx_lm.models.{family.module or kind}")
    return arch.Model, arch.ModelArgs


def attention_windows(config: dict[str, Any]) -> dict[int, int | None]:
    """The layers that have attention, and what each sees in the base model: a sliding
    window, beside others that do not slide, or ``None`` for all tokens.

    A layer that slides beside others stays as it is. Where all layers slide, all become
    hybrids.
    """
    types = config.get("layer_types")
    if types is None:
        return dict.fromkeys(range(config["num_hidden_layers"]))
    windows = {
        "full_attention": None,
        "attention": None,
        "sliding_attention": config.get("sliding_window"),
    }
    return {i: windows[kind] for i, kind in enumerate(types) if kind in windows}


def global_layers(config: dict[str, Any]) -> list[int]:
    """The layers whose attention sees all tokens in the base model, and has keys of its
    own. They become hybrids."""
    own = config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0)
    windows = attention_windows(config).items()
    return [i for i, window in windows if window is None and i < own]


def largest_window(config: dict[str, Any]) -> int | None:
    """The window of the base's own attention, if all its layers slide."""
    if config.get("layer_types"):
        return None
    return config.get("sliding_window")


def reach(config: dict[str, Any]) -> int | None:
    """The tokens that ``window + sinks + chunk`` must not exceed, because the base
    computes otherwise beyond them."""
    return family_of(config["model_type"]).reach(config)
