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
from .cache import attention_caches
from .families import attention_windows
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
    names = model.family.names
    _share(model, base, names.body)
    if "lm_head" in base and "lm_head" not in model:
        base.sanitize({})  # tied: some model files learn it from the weights
    _share(model.body, base[names.body], "layers")
    attentions = model.attentions
    for i, (layer, hybrid) in enumerate(zip(base.layers, model.layers, strict=True)):
        if i in attentions:
            _share(hybrid, layer, names.attention)
            _share(attentions[i], layer[names.attention])
        else:
            _share(hybrid, layer)
    base.eval()
    return base


def _share(module: Any, other: Any, but: str | None = None) -> None:
    """Gives another module the parameters and modules that it has in common with one,
    but for those of one name."""
    for name, part in module.items():
        if name != but and name in other:
            other[name] = part


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
    body = copy.copy(model.body)
    body.layers = [copy.copy(layer) for layer in model.layers]
    setattr(other, model.family.names.body, body)
    for i in model.global_layers:
        other.set_attention(i, change(i, model.attentions[i]))
    return other


def window_model(model: Model, window: int) -> Model:
    """The model at alpha = 0, without its memory: attention over window and sinks.

    Args:
        model (Model): a hybrid.
        window (int): tokens that attention sees.
    """
    config = replace(model.allmem, window=window)
    base, name = base_model(model), model.family.names.attention
    other = _with_attention(
        model,
        lambda i, _: WindowAttention(base.layers[i][name], config, model.family),
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
    the smallest one that has at least as many. A memory has the most just before the
    end of a chunk."""
    cache = model.make_cache()
    # Nothing is evaluated: what is counted are sizes.
    model(mx.zeros((1, max(1, model.allmem.chunk - 1)), mx.int32), cache=cache)
    layers = attention_caches(cache)
    memory = sum(x.nbytes for layer in layers for x in layer.memory if x is not None)
    windows = attention_windows(model.base_config).values()
    rings = sum(
        layer.ring.nbytes
        for layer, window in zip(layers, windows, strict=False)
        if window is None
    )
    token = rings // (model.allmem.sinks + model.allmem.window)
    return model.allmem.window + math.ceil(memory / token)
