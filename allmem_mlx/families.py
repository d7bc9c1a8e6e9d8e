"""The base models whose attention layers can become hybrids.

A family is a model file of mlx-lm. Supporting one more means naming it here, with the
settings of its ``config.json`` that the hybrid layer does not carry over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import AllMemError

# A rotary embedding that only turns, so that turning back by a distance is exact. Yarn
# and longrope also scale; "dynamic" depends on the length of what was read.
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Family:
    """How an mlx-lm model file fits the hybrid layer.

    Args:
        refused (dict): a setting of the base's ``config.json`` -> whether its value is
            one that the hybrid layer would ignore.
    """

    refused: dict[str, Callable[[Any], bool]]


def _has_sliding_layers(layer_types: list[str] | None) -> bool:
    return any(kind != "full_attention" for kind in layer_types or [])


FAMILIES = {
    "llama": Family(refused={"layer_types": _has_sliding_layers}),
    "qwen3": Family(
        refused={
            "layer_types": _has_sliding_layers,
            "use_sliding_window": bool,
            "attention_bias": bool,
        }
    ),
}


# Sizes that every base states in its config.json.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary embedding, where every model file of mlx-lm reads them.

    transformers >= 5 nests them in ``rope_parameters``.

    Args:
        config (dict): the base's ``config.json``.

    Returns:
        dict: ``rope_theta`` and ``rope_scaling``, as far as they are nested.
    """
    nested = dict(config.get("rope_parameters") or {})
    settings = {}
    if "rope_theta" in nested:
        settings["rope_theta"] = nested.pop("rope_theta")
    if nested.get("rope_type", "default") != "default":
        settings["rope_scaling"] = nested
    return settings


def check_base(config: dict[str, Any]) -> None:
    """Refuses, by name, a base model or a setting that would not be obeyed.

    Args:
        config (dict): the base's ``config.json``.

    Raises:
        AllMemError: if the base cannot be converted.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise AllMemError(
            f"model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    for name in SIZES:
        if type(config.get(name)) is not int or config[name] < 1:
            raise AllMemError(
                f"{name} is {config.get(name)!r}; it must be a whole number above 0"
            )
    for name, ignored in FAMILIES[kind].refused.items():
        if ignored(config.get(name)):
            raise AllMemError(
                f"{kind} with {name} = {config[name]!r} is not supported; the hybrid "
                "layer would ignore it"
            )
    for block in ("rope_scaling", "rope_parameters"):
        scaling = config.get(block) or {}
        if not isinstance(scaling, dict):
            raise AllMemError(f"{block} is {scaling!r}; it must be an object")
        rope_type = scaling.get("rope_type") or scaling.get("type", "default")
        if rope_type not in ROPE_TYPES:
            raise AllMemError(
                f"{block} of type {rope_type!r} is not supported; "
                f"supported: {', '.join(ROPE_TYPES)}"
            )
