"""Measures a base model on text, and sets where training of its memory starts."""

from typing import Any

import numpy as np
import torch
from hybrid import TEACHER, Hybrid
from judge import token_losses
from torch import Tensor

from allmem_mlx.distillation.initial import Layer, Output, initial_memory


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


@torch.no_grad()
def measure(hybrid: Hybrid, documents: Tensor) -> tuple[list[Layer], Output]:
    """What the start of training is made of.

    Args:
        documents (Tensor): text to measure the layers' inputs on, ``[B, L]``.
    """
    everything = hybrid.head.float()
    everything = everything - everything.mean(0)
    rows = everything[documents].flatten(0, 1)
    surprise = torch.zeros(documents.shape)  # nothing is known of the first token
    surprise[:, 1:] = token_losses(hybrid, documents, TEACHER)
    surprise = surprise.flatten().to(rows)
    surprise = (surprise - surprise.mean()) / surprise.std()
    measured: list[dict[str, Tensor]] = []
    sizes: list[float] = []

    def measure_input(layer: Any, args: Any, kwargs: Any) -> None:
        u = kwargs["hidden_states"].flatten(0, 1).float()
        measured.append(
            {
                "moment": u.T @ u / len(u),
                "mean": u.mean(0),
                "surprise": u.T @ surprise / len(u),
                "cross": u.T @ rows / len(u),
            }
        )

    def measure_stream(layer: Any, args: Any, kwargs: Any) -> None:
        sizes.append(args[0].float().norm(dim=-1).mean().item())

    hooks = []
    for layer in hybrid.model.model.layers:
        if layer.self_attn in hybrid.layers():
            hooks += [
                layer.register_forward_pre_hook(measure_stream, with_kwargs=True),
                layer.self_attn.register_forward_pre_hook(
                    measure_input, with_kwargs=True
                ),
            ]
    hybrid.hidden(documents, TEACHER)
    for hook in hooks:
        hook.remove()
    layers = [
        Layer(
            value=_array(layer.base.v_proj.weight),
            out=_array(layer.base.o_proj.weight),
            head_dim=layer.base.head_dim,
            size=size,
            **{name: _array(x) for name, x in moments.items()},
        )
        for layer, moments, size in zip(hybrid.layers(), measured, sizes, strict=True)
    ]
    # Half of tokens as they come, half of the whole vocabulary.
    moment = (
        rows.T @ rows / len(rows) + everything.T @ everything / len(everything)
    ) / 2
    x = hybrid.embedded(documents).flatten(0, 1).float()
    output = Output(
        moment=_array(moment),
        scale=_array(hybrid.output_scale),
        token_moment=_array(x.T @ x / len(x)),
        token_cross=_array(x.T @ rows / len(x)),
    )
    return layers, output


@torch.no_grad()
def initialize(
    hybrid: Hybrid, layers: list[Layer], output: Output, alpha: float, seed: int
) -> None:
    """Sets what training starts from, in every layer.

    Args:
        layers, output: what was measured.
        alpha (float): of every channel.
        seed (int): of the random features.
    """
    start = initial_memory(hybrid.config, layers, output, alpha, seed)
    for layer, arrays in zip(hybrid.layers(), start, strict=True):
        own = dict(layer.named_parameters())
        for name, x in arrays.items():
            own[name].copy_(torch.from_numpy(x))
