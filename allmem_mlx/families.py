"""The base models whose attention layers can become hybrids.

A family is a model file of mlx-lm: a dense decoder whose layers have ``self_attn``,
with softmax attention over rotated queries and keys. Its code for projections, norms,
rotary embedding, biases, soft caps and scales is used as it is; this module lists how
it differs. ``docs/conversion.md`` has the table.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import patches
from .errors import AllMemError

# A rotary embedding that only turns and scales, so that turning back is exact.
# "dynamic" depends on the length of what was read, and longrope has two sets of
# frequencies, of which mlx-lm reads one.
SCALED = ("default", "linear", "llama3", "yarn")


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
        patch (callable): patches the model where the model file computes otherwise
            than transformers, given its configuration too.
        array_mask (bool): whether its attention wants every mask as an array.
        rotates (callable): whether an attention layer rotates queries and keys.
        normed (bool): whether the layer norms the input of its attention, rather than
            the output.
    """

    module: str | None = None
    rope_types: tuple[str, ...] = ("default",)
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    patch: Callable[[Any, dict[str, Any]], None] = lambda model, config: None
    array_mask: bool = False
    rotates: Callable[[Any], bool] = lambda attention: True
    normed: bool = True


def _check_mixed(config: dict[str, Any]) -> None:
    if config["layer_types"] is None:
        raise AllMemError("only a model with sliding and global layers is supported")


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


FAMILIES = {
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
    "ernie4_5": Family(),
    "exaone4": Family(
        rope_types=SCALED,
        settings=_exaone4,
        rotates=lambda attention: attention.use_rope,
        normed=False,
    ),
    "gemma": Family(patch=patches.gemma),
    "gemma2": Family(settings=_gemma2, array_mask=True),
    "gemma3_text": Family(rope_types=SCALED, settings=_gemma3, patch=patches.gemma3),
    "glm4": Family(),
    "granite": Family(rope_types=SCALED),
    "helium": Family(patch=patches.helium),
    "llama": Family(rope_types=SCALED),
    "mistral": Family("llama", rope_types=SCALED),
    "nemotron": Family(
        rope_types=("default", "linear"), fixed={"hidden_act": ("relu2",)}
    ),
    "olmo2": Family(rope_types=SCALED, normed=False),
    "olmo3": Family(rope_types=SCALED, settings=_olmo3, normed=False),
    "phi": Family(),
    "phi3": Family(),
    "qwen2": Family(rope_types=SCALED),
    "qwen3": Family(rope_types=SCALED),
    "seed_oss": Family(rope_types=SCALED),
    "smollm3": Family(rope_types=SCALED),
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
# Models with a tower beside the language model, which alone is converted.
WRAPPERS = {"gemma3": "gemma3_text"}


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


def model_file(kind: str) -> Any:
    """mlx-lm's module for a family."""
    return importlib.import_module(f"mlx_lm.models.{family_of(kind).module or kind}")


def sliding_windows(config: dict[str, Any]) -> list[int | None]:
    """The window of each layer that slides in the base model, beside others that do
    not; such a layer stays as it is. ``None`` for a layer that becomes a hybrid.

    Where all layers slide, all become hybrids.
    """
    layers = config["num_hidden_layers"]
    types = config.get("layer_types") or ["full_attention"] * layers
    window = config.get("sliding_window")
    return [None if kind == "full_attention" else window for kind in types]


def global_layers(config: dict[str, Any]) -> list[int]:
    """The layers of a base that do not slide beside others that do."""
    return [i for i, w in enumerate(sliding_windows(config)) if w is None]


def largest_window(config: dict[str, Any]) -> int | None:
    """The window of the base's own attention, if all its layers slide."""
    if config.get("layer_types"):
        return None
    return config.get("sliding_window")
