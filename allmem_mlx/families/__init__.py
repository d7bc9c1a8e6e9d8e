"""The base models whose attention layers can become hybrids.

A family is a model file of mlx-lm: a decoder with softmax attention over rotated
queries and keys. Its code for projections, norms, rotary embedding, biases, soft caps,
scales, experts and recurrent layers is used as it is; ``table.py`` lists how it
differs, and ``docs/conversion.md`` shows it.
"""

import importlib
from typing import Any

from ..errors import AllMemError
from .family import SCALED, Family, Names
from .layers import (
    EXPERTS,
    EXPERTS_OF_A_TOKEN,
    SIZES,
    attention_windows,
    check_sizes,
    global_layers,
    largest_window,
)
from .table import FAMILIES, REFUSED, TEXT_MODELS, WRAPPERS

__all__ = [
    "EXPERTS",
    "EXPERTS_OF_A_TOKEN",
    "FAMILIES",
    "SCALED",
    "SIZES",
    "TEXT_MODELS",
    "WRAPPERS",
    "Family",
    "Names",
    "attention_windows",
    "check_sizes",
    "family_of",
    "global_layers",
    "largest_window",
    "model_classes",
    "reach",
]


def family_of(kind: Any) -> Family:
    """
    Args:
        kind (str): ``model_type`` of a base's ``config.json``.

    Raises:
        AllMemError: if no such family is known.
    """
    if isinstance(kind, str) and kind in REFUSED:
        raise AllMemError(f"model_type {kind!r} is not supported: {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise AllMemError(
            f"model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def model_classes(kind: str) -> tuple[Any, Any]:
    """mlx-lm's classes of a family's model and of its settings."""
    family = family_of(kind)
    if family.classes is not None:
        return family.classes()
    arch = importlib.import_module(f"mlx_lm.models.{family.module or kind}")
    return arch.Model, arch.ModelArgs


def reach(config: dict[str, Any]) -> int | None:
    """The tokens that ``window + sinks + chunk`` must not exceed, because the base
    computes otherwise beyond them."""
    return family_of(config["model_type"]).reach(config)
