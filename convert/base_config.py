"""A base model's ``config.json`` in the form that mlx-lm's model file reads.

transformers is the authority on the meaning of a setting: its configuration class fills
in defaults and unifies old spellings. Every setting is then carried over, known not to
change the model's output, or refused by name.
"""

import inspect
import logging
from typing import Any

from allmem_mlx.errors import AllMemError, reason
from allmem_mlx.families import SIZES, WRAPPERS, check_sizes, family_of, model_file

# The output for a document does not depend on these: they concern training, the
# tokenizer or generation, or describe the file.
HARMLESS = {
    "attention_dropout",
    "bos_token_id",
    "embd_pdrop",
    "embedding_dropout",
    "eod_token_id",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "max_position_embeddings",
    "max_window_layers",  # layer_types says it
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "residual_dropout",
    "rope_parameters",  # carried over below
    "layer_types",
    "sliding_window",
    "use_cache",
    "use_sliding_window",
    "_sliding_window_pattern",
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
    },
}


def language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model inside a model with other towers."""
    kind = config.get("model_type")
    inner = config.get("text_config")
    if not isinstance(kind, str) or kind not in WRAPPERS or not isinstance(inner, dict):
        return config
    shared = ("bos_token_id", "eos_token_id", "quantization", "quantization_config")
    outer = {name: config[name] for name in shared if name in config}
    return {**inner, **outer, "model_type": WRAPPERS[kind]}


def _of_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """All settings in the form of transformers."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[config["model_type"]]
    logger = logging.getLogger("transformers.configuration_utils")
    before, logger.disabled = logger.disabled, True
    try:
        return kind.from_dict(dict(config)).to_dict()
    except Exception as error:  # of many kinds, for a configuration that makes no sense
        text = reason(error).rpartition("Error: ")[2]
        raise AllMemError(f"the configuration cannot be read: {text}") from None
    finally:
        logger.disabled = before


def _rope(config: dict[str, Any], rope_types: tuple[str, ...]) -> dict[str, Any]:
    """``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``."""
    rope = config["rope_parameters"]
    if "full_attention" in rope:  # one per kind of layer
        if (kind := rope["sliding_attention"]["rope_type"]) != "default":
            raise AllMemError(f"rope_type {kind!r} of sliding layers is not supported")
        rope = rope["full_attention"]
    kind = rope.get("rope_type", "default")
    if kind not in rope_types:
        raise AllMemError(
            f"rope_type {kind!r} of {config['model_type']} is not supported; "
            f"supported: {', '.join(rope_types)}"
        )
    settings = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
    }
    if kind != "default":
        known = {name: rope[name] for name in ROPE[kind] if rope.get(name) is not None}
        if not isinstance(known.get("factor"), int | float):
            raise AllMemError(f"factor of a {kind} rotary embedding is missing")
        if not (known.get("mscale") and known.get("mscale_all_dim")):
            known.pop("mscale", None)  # transformers uses both or neither
            known.pop("mscale_all_dim", None)
        ignored = set(rope) - ROPE[kind]
        ignored -= {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        for name in sorted(ignored):
            if rope[name] is not None and (name, rope[name]) != ("truncate", True):
                raise AllMemError(
                    f"{name} = {rope[name]!r} of a {kind} rotary embedding is not "
                    "supported"
                )
        known["factor"] = float(known["factor"])  # some model files insist
        settings["rope_scaling"] = {"type": kind, "rope_type": kind, **known}
    return settings


def _layers(config: dict[str, Any]) -> dict[str, Any]:
    """``layer_types`` if layers differ, and ``sliding_window`` if any slides."""
    window = config.get("sliding_window")
    types = config.get("layer_types") or []
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise AllMemError(f"a layer of type {kind!r} is not supported")
    if window is None or (types and "sliding_attention" not in types):
        return {"layer_types": None, "sliding_window": None}
    if "full_attention" not in types:
        return {"layer_types": None, "sliding_window": window}
    return {"layer_types": list(types), "sliding_window": window}


def _mlx_lm_settings(kind: str) -> set[str]:
    """Settings that mlx-lm's model file knows."""
    return set(inspect.signature(model_file(kind).ModelArgs).parameters)


def fixed_settings(kind: str) -> dict[str, tuple[Any, ...]]:
    """Settings of a family that would be ignored, and the values they may have.

    Args:
        kind (str): ``model_type`` of the family.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    family = family_of(kind)
    defaults = {**CONFIG_MAPPING[kind]().to_dict(), "partial_rotary_factor": 1.0}
    obeyed = _mlx_lm_settings(kind) | HARMLESS | set(PretrainedConfig().to_dict())
    fixed = {name: (x,) for name, x in defaults.items() if name not in obeyed}
    return {**fixed, **family.fixed}


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
    if config.get("quantization_config") and not config.get("quantization"):
        raise AllMemError(
            "its weights are quantised, and not by MLX; convert the model that was "
            "quantised"
        )
    given = {name: config[name] for name in SIZES if name in config}
    check_sizes({**dict.fromkeys(SIZES, 1), **given})
    settings = _of_transformers(config)
    check_sizes(settings)
    carried = {**_rope(settings, family.rope_types), **_layers(settings)}
    carried.update(family.settings({**settings, **carried}))
    settings = {**settings, **carried}
    for name, accepted in fixed_settings(kind).items():
        if name in settings and settings[name] not in accepted:
            raise AllMemError(
                f"{kind} with {name} = {settings[name]!r} is not supported; it must be "
                + " or ".join(map(repr, accepted))
            )
    carried["tie_word_embeddings"] = bool(settings.get("tie_word_embeddings"))
    known = _mlx_lm_settings(kind) & set(settings)
    return {**{name: settings[name] for name in known}, **carried}
