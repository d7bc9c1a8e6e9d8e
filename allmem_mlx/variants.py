"""Models with the weights of a hybrid that lack a part of it: its base, the window
alone, a memory that is never written."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .attention import WindowAttention
from .families import family_of
from .memory import Memory, MemoryState
from .memory.kernels import Operations
from .model import Model, new_base


def base_model(model: Model) -> nn.Module:
    """The model that was converted: full attention, no memory, the same weights.

    Args:
        model (Model): a hybrid; its weights are shared, not copied.

    Returns:
        nn.Module: mlx-lm's own model.
    """
    base = new_base(model.base_config)
    for name, module in model.children().items():
        if name != "model":
            setattr(base, name, module)
    if "lm_head" in base and "lm_head" not in model:
        base.sanitize({})  # tied: some model files learn it from the weights
    for name, module in model.model.children().items():
        if name != "layers":
            setattr(base.model, name, module)
    for layer, hybrid in zip(base.layers, model.layers, strict=True):
        for name, module in hybrid.children().items():
            if name != "self_attn":
                setattr(layer, name, module)
        for name in layer.self_attn.children():
            setattr(layer.self_attn, name, hybrid.self_attn[name])
    base.eval()
    return base


class FrozenMemory(Memory):
    """A memory that is read and never written."""

    def learn(
        self, ops: Operations, state: MemoryState, rows: mx.array, token: int
    ) -> MemoryState:
        """See :class:`Memory`."""
        return state


def _with_attention(model: Model, change: Callable[[int, Any], Any]) -> Model:
    """The model with ``change(layer, attention)`` in the place of each attention that
    is over window and sinks."""
    other = copy.copy(model)
    other.model = copy.copy(model.model)
    other.model.layers = [copy.copy(layer) for layer in model.layers]
    for i in model.global_layers:
        layer = other.model.layers[i]
        layer.self_attn = change(i, layer.self_attn)
    return other


def window_model(model: Model, window: int) -> Model:
    """The model at alpha = 0, without its memory: attention over window and sinks.

    Args:
        model (Model): a hybrid.
        window (int): tokens that attention sees.
    """
    config = replace(model.allmem, window=window)
    family = family_of(model.base_config["model_type"])
    base = base_model(model)
    other = _with_attention(
        model,
        lambda i, _: WindowAttention(base.layers[i].self_attn, config, family),
    )
    other.allmem = config
    return other


def frozen_model(model: Model) -> Model:
    """The model with a memory that is read and never written."""

    def freeze(i: int, attention: Any) -> Any:
        attention = copy.copy(attention)
        if "memory" in attention:
            attention.memory = FrozenMemory.of(attention.memory)
        return attention

    return _with_attention(model, freeze)


def matched_window(model: Model) -> int:
    """The window whose keys and values have the bytes of window and memory together:
    the smallest one that has at least as many."""
    cache = model.make_cache()
    model(mx.array([[0]]), cache=cache)
    memory = sum(x.nbytes for layer in cache for x in layer.memory)
    rings = sum(cache[i].ring.nbytes for i in model.global_layers)
    token = rings // (model.allmem.sinks + model.allmem.window)
    return model.allmem.window + math.ceil(memory / token)
