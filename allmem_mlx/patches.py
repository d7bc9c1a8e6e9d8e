"""Where mlx-lm's model file computes otherwise than transformers, put right.

A correction changes the class of a module, so that its parameters and their names stay
as they are.
"""

import math
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@cache
def subclass(own: Any, base: Any) -> type:
    """A class that does what ``own`` says and all else as ``base``."""
    return type(own.__name__, (own, base), {})


def _correct(module: Any, own: type) -> None:
    kind: Any = type(module)
    module.__class__ = subclass(own, kind)


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
        _correct(layer.mlp, _GemmaMLP)


def gemma3(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm rounds the scale of the embedding to bfloat16, whatever the model's
    type."""
    _correct(model.model, _Gemma3Body)


def helium(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm makes a head for a model that uses its embedding as one."""
    if config["tie_word_embeddings"]:
        model.pop("lm_head")


def starcoder2(model: Any, config: dict[str, Any]) -> None:
    """As :func:`gemma`."""
    for layer in model.layers:
        _correct(layer.mlp, _Starcoder2MLP)
