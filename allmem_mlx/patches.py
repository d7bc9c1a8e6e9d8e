"""Patches of mlx-lm's model files where they compute otherwise than transformers.

A patch changes the class of a module, so that its parameters and their names stay as
they are.
"""

import math
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@cache
def subclass(kind: Any, base: Any) -> type:
    """A class that does what ``kind`` says and all else as ``base``."""
    return type(kind.__name__, (kind, base), {})


def specialize(module: nn.Module, kind: type, base: type | None = None) -> None:
    """Changes the class of a module that exists.

    Args:
        module (nn.Module): the module; its parameters stay as they are.
        kind (type): the class whose methods come first.
        base (type): the class of all other methods. Default: the module's own.
    """
    module.__class__ = subclass(kind, base or type(module))


class _GemmaMLP(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class _Starcoder2MLP(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(nn.gelu_approx(self.c_fc(x)))


class _Gemma3Body(nn.Module):
    def __call__(
        self,
        inputs: mx.array,
        cache: Any = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        h = input_embeddings
        if h is None:
            h = self.embed_tokens(inputs)
        if h.dtype != mx.bfloat16:
            scale = math.sqrt(h.shape[-1])
            h = h * (scale / mx.array(scale, mx.bfloat16).item())
        return super().__call__(inputs, cache, h)  # type: ignore[misc]


def gemma(model: Any, config: dict[str, Any]) -> None:
    """Gemma's GELU is the tanh approximation; mlx-lm computes the exact one."""
    for layer in model.layers:
        specialize(layer.mlp, _GemmaMLP)


def gemma3(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm rounds the scale of the embedding to bfloat16, whatever the model's
    type."""
    specialize(model.model, _Gemma3Body)


def helium(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm makes a head for a model that uses its embedding as one."""
    if config["tie_word_embeddings"]:
        model.pop("lm_head")


def starcoder2(model: Any, config: dict[str, Any]) -> None:
    """As :func:`gemma`."""
    for layer in model.layers:
        specialize(layer.mlp, _Starcoder2MLP)
