"""Measures a base model on text, and initializes its memory."""

import numpy as np
import torch
from torch import Tensor

from ..initial import Layer, Output, initial_memory, measure_text
from .hybrid import TEACHER, Hybrid
from .judge import token_losses


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


@torch.no_grad()
def measure(hybrid: Hybrid, documents: Tensor) -> tuple[list[Layer], Output]:
    """Measures the inputs of the hybrid layers, and the output matrix.

    Args:
        hybrid (Hybrid): the model.
        documents (Tensor): tokens of texts, ``[B, L]``.
    """
    *text, output = measure_text(
        documents.tolist(),
        _array(token_losses(hybrid, documents, TEACHER)),
        _array(hybrid.embedded(documents).flatten(0, 1)),
        _array(hybrid.head),
        _array(hybrid.output_scale),
    )
    layers = []
    for layer, stream in hybrid.residual_streams(documents):
        base = layer.self_attn.base
        measured = Layer.measured(
            _array(layer.input_layernorm(stream).flatten(0, 1)),
            *text,
            value=_array(base.v_proj.weight),
            out=_array(base.o_proj.weight),
            head_dim=base.head_dim,
            size=stream.float().norm(dim=-1).mean().item(),
        )
        layers.append(measured)
    return layers, output


@torch.no_grad()
def initialize(
    hybrid: Hybrid, layers: list[Layer], output: Output, alpha: float, seed: int
) -> None:
    """Initializes the memory of every hybrid layer.

    Args:
        hybrid (Hybrid): the model.
        layers, output: of :func:`measure`.
        alpha (float): of every channel.
        seed (int): of the random features.
    """
    start = initial_memory(hybrid.config, layers, output, alpha, seed)
    for layer, arrays in zip(hybrid.layers(), start, strict=True):
        parameters = dict(layer.named_parameters())
        for name, x in arrays.items():
            parameters[name].copy_(torch.from_numpy(x))
