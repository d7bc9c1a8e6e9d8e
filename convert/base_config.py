"""A base model's ``config.json`` in the form that mlx-lm's model file reads.

transformers is the authority on the meaning of a setting: its configuration class fills
in defaults and unifies old spellings. Every setting is then carried over, known not to
change the model's output, or refused by name.
"""

import inspect
import warnings
from typing import Any

from allmem_mlx.config import AllMemConfig
from allmem_mlx.errors import AllMemError, reason
from allmem_mlx.families import (
    EXPERTS,
    EXPERTS_OF_A_TOKEN,
    FAMILIES,
    SIZES,
    TEXT_MODELS,
    WRAPPERS,
    Family,
    check_sizes,
    family_of,
    largest_window,
    model_classes,
    reach,
)

# The output for a document does not depend on these: they concern training, the
# tokenizer or generation, or describe the file.
HARMLESS = {
    "attention_dropout",
    "bos_token_id",
    "chunk_size",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "expand",
    "full_attn_idxs",
    "hidden_dropout",
    "initializer_range",
    "input_jitter_noise",
    "interleave_moe_layer_step",
    "layer_types",
    "layers_block_type",
    "linear_a_log_max",
    "linear_a_log_min",
    "linear_dt_init_floor",
    "linear_dt_max",
    "linear_dt_min",
    "mamba_chunk_size",
    "mamba_expand",
    "mamba_ssm_cache_dtype",
    "max_position_embeddings",
    "max_window_layers",  # layer_types says it
    "moe_shared_expert_overlap",
    "mtp_layer_types",
    "mtp_layers_block_type",
    "mtp_mlp_layer_types",
    "no_rope_layer_interval",
    "num_logits_to_keep",
    "num_nextn_predict_layers",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "rescale_prenorm_residual",
    "resid_pdrop",
    "residual_dropout",
    "rope_parameters",  # carried over below
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sliding_window",
    "_sliding_window_pattern",
    "time_step_floor",
    "time_step_max",
    "time_step_min",
    "use_associative_scan",
    "use_cache",
    "use_mamba_kernels",
    "use_mambapy",
    "use_sliding_window",
}
# Settings of a scaled rotary embedding that mlx-lm reads.
ROPE = {
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    },
    "longrope": {
        "attention_factor",
        "factor",
        "long_factor",
        "original_max_position_embeddings",
        "short_factor",
    },
}
# Those that it cannot do without, which are lists; of all others it is the factor.
LISTS = {"longrope": ("short_factor", "long_factor")}
# Layers without attention, of families that have recurrent ones.
OTHER_LAYERS = ("linear_attention", "conv", "moe", "mlp")
# Of a model with towers, what its language model has in common with them.
SHARED = (
    "bos_token_id",
    "eos_token_id",
    "quantization",
    "quantization_config",
    "quantize_activations",
)
# What the window leaves room for, where positions must stay below a bound.
FIXED = ("sinks", "chunk")
# How three positions share a rotary embedding; those of a text are one.
MROPE = ("mrope_section", "mrope_interleaved")
# Families and methods of quantisation of which mlx-lm's model file takes the packed
# weights as they are.
PACKED_ALIKE = [("gpt_oss", "mxfp4")]


def language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model inside a model with other towers.

    Args:
        config (dict): the ``config.json`` of a base, with or without towers.

    Returns:
        dict: the settings of the language model, with the ``model_type`` of its family;
        ``config`` itself if there are no towers.

    Raises:
        AllMemError: if the language model is not of a known family, or its settings
            cannot be read.
    """
    kind: Any = config.get("model_type")
    if not isinstance(kind, str) or kind not in WRAPPERS:
        return config
    # Old versions of transformers wrote all settings side by side.
    inner: Any = config.get("text_config", config)
    if not isinstance(inner, dict):
        raise AllMemError(f"the text_config of {kind} is {inner!r}, not settings")
    _check_given_sizes(inner)
    towers = {x for x in config if x.endswith("_config")} - {"text_config"}
    whole = _of_transformers({x: config[x] for x in config if x not in towers})
    text = whole["text_config"]
    family, implied = _family_inside(kind, text["model_type"])
    if any(text.get(name) != inner[name] for name in SIZES if name in inner):
        raise AllMemError(f"{kind} has no text_config, where transformers reads it")
    tied = whole.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    unstated = {*_general_settings(), *SHARED} - inner.keys()
    return {
        **{name: x for name, x in text.items() if name not in unstated},
        **_of_text_alone(text),
        **implied,
        **{name: x[name] for x in (inner, config) for name in SHARED if name in x},
        "model_type": family,
        "tie_word_embeddings": bool(tied),
    }


def _of_text_alone(text: dict[str, Any]) -> dict[str, Any]:
    """Settings that are others where there are no images."""
    settings: dict[str, Any] = {}
    if rope := text.get("rope_parameters"):
        settings["rope_parameters"] = {x: rope[x] for x in rope if x not in MROPE}
    if text.get("use_bidirectional_attention") == "vision":
        settings["use_bidirectional_attention"] = None
    return settings


def _family_inside(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """The family of a language model, and settings that it stands for."""
    family, implied = TEXT_MODELS.get(text, (text, {}))
    for name in (family, family.removesuffix("_text")):
        if name in FAMILIES:
            return name, implied
    raise AllMemError(f"{kind} with a language model of type {text!r} is not supported")


def _general_settings() -> set[str]:
    """Settings of any configuration of transformers."""
    from transformers import PretrainedConfig

    return set(PretrainedConfig().to_dict())


def states_tied_embeddings(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` says if the head is the embedding; it need not."""
    inner = config.get("text_config")
    names = {*config, *(inner if isinstance(inner, dict) else ())}
    return bool(names & {"tie_word_embeddings", "tie_embedding"})


def _check_given_sizes(config: dict[str, Any]) -> None:
    """Before transformers reads them: it makes lists as long as they say."""
    given = {name: config[name] for name in SIZES if name in config}
    check_sizes({**dict.fromkeys(SIZES, 1), **given})


def _of_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """All settings in the form of transformers."""
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    kind = CONFIG_MAPPING[config["model_type"]]
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it warns about is checked here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = kind.from_dict(dict(config))
        # Some sizes follow from others.
        return {**{x: getattr(read, x, None) for x in SIZES}, **read.to_dict()}
    except Exception as error:  # of many kinds, for a configuration that makes no sense
        text = reason(error).rpartition("Error: ")[2]
        raise AllMemError(f"the configuration cannot be read: {text}") from None
    finally:
        logging.set_verbosity(before)


def _check_rope(rope: dict[str, Any]) -> None:
    for name, largest in (("rope_theta", 1e30), ("partial_rotary_factor", 1)):
        value = rope.get(name, 1.0)
        if type(value) not in (int, float) or not 0 < value <= largest:
            raise AllMemError(
                f"{name} is {value!r}; it must be above 0, and at most {largest:g}"
            )


def _rope(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``."""
    rope = config.get("rope_parameters")
    if rope is None:
        return {}
    by_kind = "full_attention" in rope
    for each in rope.values() if by_kind else [rope]:
        _check_rope(each)
    if by_kind:
        sliding = rope.get("sliding_attention") or {}
        if (kind := sliding.get("rope_type", "default")) != "default":
            raise AllMemError(f"rope_type {kind!r} of sliding layers is not supported")
        rope = rope["full_attention"]
    kind = rope.get("rope_type", "default")
    if kind not in family.rope_types:
        raise AllMemError(
            f"rope_type {kind!r} of {config['model_type']} is not supported; "
            f"supported: {', '.join(family.rope_types)}"
        )
    settings = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
    }
    if kind in ROPE:
        known = {name: rope[name] for name in ROPE[kind] if rope.get(name) is not None}
        for name in LISTS.get(kind, ("factor",)):
            if not isinstance(known.get(name), list if kind in LISTS else int | float):
                raise AllMemError(f"{name} of a {kind} rotary embedding is missing")
        if not (known.get("mscale") and known.get("mscale_all_dim")):
            known.pop("mscale", None)  # transformers uses both or neither
            known.pop("mscale_all_dim", None)
        ignored = set(rope) - ROPE[kind]
        ignored -= {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        for name in sorted(ignored):
            if rope[name] is not None and name not in family.rope_settings:
                raise AllMemError(
                    f"{name} = {rope[name]!r} of a {kind} rotary embedding is not "
                    "supported"
                )
        if "factor" in known:
            known["factor"] = float(known["factor"])  # some model files insist
        settings["rope_scaling"] = {"type": kind, "rope_type": kind, **known}
    return settings


def _layers(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """``layer_types`` if layers differ, and ``sliding_window`` if any slides."""
    window = config.get("sliding_window")
    types = config.get("layer_types") or config.get("layers_block_type") or []
    types = [family.layer_types.get(kind, kind) for kind in types]
    others = OTHER_LAYERS if family.recurrent else ()
    for kind in types:
        if kind not in ("full_attention", "sliding_attention", *others):
            raise AllMemError(f"a layer of type {kind!r} is not supported")
    if types and set(types) <= set(others):
        raise AllMemError("a model without a layer of attention is not supported")
    if window is None:  # nothing slides
        named = {"sliding_attention": "full_attention"}
        types = [named.get(kind, kind) for kind in types]
    elif types and "sliding_attention" not in types:
        window = None
    differ = len(set(types)) > 1
    return {"layer_types": types if differ else None, "sliding_window": window}


def _check_experts(config: dict[str, Any]) -> None:
    """Refuses a choice among experts that cannot be made."""
    experts = next((config[name] for name in EXPERTS if config.get(name)), None)
    if not isinstance(experts, int):
        return
    groups, kept = config.get("n_group") or 1, config.get("topk_group") or 1
    if experts % groups or (groups > 1 and experts == groups):
        raise AllMemError(
            f"n_group is {groups}; {experts} experts do not make as many groups"
        )
    if kept > groups:
        raise AllMemError(f"topk_group is {kept}, and n_group {groups}")
    candidates = experts // groups * kept
    among = f", those of {kept} groups (topk_group)" if kept < groups else ""
    for name in EXPERTS_OF_A_TOKEN:
        if (chosen := config.get(name)) is not None and not 0 < chosen <= candidates:
            raise AllMemError(
                f"{name} is {chosen}; a token chooses among {candidates} experts{among}"
            )


def _mlx_lm_settings(kind: str) -> set[str]:
    """Settings that mlx-lm's model file knows."""
    return set(inspect.signature(model_classes(kind)[1]).parameters)


def fixed_settings(kind: str) -> dict[str, tuple[Any, ...]]:
    """Settings of a family that would be ignored, and the values they may have.

    Args:
        kind (str): ``model_type`` of the family.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    family = family_of(kind)
    defaults = {**CONFIG_MAPPING[kind]().to_dict(), "partial_rotary_factor": 1.0}
    obeyed = _mlx_lm_settings(kind) | HARMLESS | set(PretrainedConfig().to_dict())
    obeyed |= set(family.own_settings)
    fixed = {name: (x,) for name, x in defaults.items() if name not in obeyed}
    return {**fixed, **family.fixed}


def _check_quantization(config: dict[str, Any]) -> None:
    """Refuses weights that were not quantised by MLX, and that it cannot take over as
    they are."""
    other = config.get("quantization_config")
    if not other or config.get("quantization"):
        return
    method = other.get("quant_method") if isinstance(other, dict) else other
    if (config["model_type"], method) not in PACKED_ALIKE:
        raise AllMemError(
            f"its weights are quantised by {method!r}, and not by MLX; convert the "
            "model that was quantised"
        )


def _carried(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Settings that the model file reads in another form."""
    try:
        carried = {**_rope(config, family), **_layers(config, family)}
        given = {"given_window": config.get("sliding_window")}
        return {**carried, **family.settings({**config, **given, **carried})}
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        text = f"{type(error).__name__}: {reason(error)}"
        raise AllMemError(f"the configuration makes no sense: {text}") from None


def carry_over(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the base model in a hybrid's ``config.json``.

    Args:
        config (dict): the ``config.json`` of the base, from transformers or mlx-lm.

    Returns:
        dict: settings under their names in mlx-lm's model file, and
        ``layer_types``, ``sliding_window`` and ``tie_word_embeddings``.

    Raises:
        AllMemError: if the base is not of a known family, or has a setting that would
            be ignored.
    """
    kind: Any = config.get("model_type")
    family = family_of(kind)
    _check_quantization(config)
    _check_given_sizes(config)
    settings = _of_transformers(config)
    check_sizes(settings)
    carried = _carried(settings, family)
    settings = {**settings, **carried}
    _check_experts(settings)
    for name, accepted in fixed_settings(kind).items():
        if name in settings and settings[name] not in accepted:
            raise AllMemError(
                f"{kind} with {name} = {settings[name]!r} is not supported; it must be "
                + " or ".join(map(repr, accepted))
            )
    carried["tie_word_embeddings"] = bool(settings.get("tie_word_embeddings"))
    known = {*_mlx_lm_settings(kind), *family.own_settings} & set(settings)
    return {**{name: settings[name] for name in known}, **carried}


def hybrid_config(base: dict[str, Any], settings: dict[str, Any]) -> AllMemConfig:
    """The configuration of the hybrid layers of a base.

    Args:
        base (dict): the configuration of the base, with what :func:`carry_over` adds.
        settings (dict): values that differ from the defaults.

    Raises:
        SettingError: if a setting is impossible.
    """
    sizes = {name: settings.get(name, getattr(AllMemConfig, name)) for name in FIXED}
    limit = reach(base)
    limits = [
        AllMemConfig.window,
        largest_window(base),
        None if limit is None else limit - sum(sizes.values()),
    ]
    window = min(x for x in limits if x is not None)
    settings = {"window": max(window, 1), **settings}
    return AllMemConfig.for_base(base, **settings)
