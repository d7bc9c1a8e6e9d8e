"""Where training starts: a memory that can tell tokens apart.

The inputs of an attention layer, and so its keys, point mostly the same way (the mean
cosine of two keys of SmolLM2 is 0.8). A memory that learns such keys learns one thing,
their mean. The projections are therefore those of the base model's own keys and values,
whitened on a few thousand tokens of text, and the output projection undoes it: a value
read back exactly is what the base model's attention would have brought. A query is the
key of the token itself and a key that of the token before, so that reading finds what
followed tokens like this one.
"""

import torch
from hybrid import TEACHER, Hybrid, HybridAttention
from torch import Tensor

from allmem_mlx.errors import SettingError

FLOOR = 1e-3  # of the largest variance: what varies less is noise
INPUT = 0.1  # of the SiLU of queries and keys: so small that it is nearly linear
# Added to the learning rates of gate and up before the softplus: 1/150 of the rate of
# down. What is written is read back through features that stay what they are.
STEADY = -5.0


def whitening(moment: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """``A [width, d]`` for which ``A x`` has uncorrelated components of variance 1,
    the largest first, and its pseudo-inverse.

    Args:
        moment (Tensor): ``E[x x^T]``, ``[d, d]``. Not centred, so that a common
            direction of all x becomes as small as any other.
        width (int): at most d.
    """
    variance, directions = torch.linalg.eigh(moment.double())
    variance, directions = variance.flip(0)[:width], directions.flip(1)[:, :width]
    deviation = variance.clamp(min=FLOOR * variance[0]).sqrt()
    whiten, inverse = directions.T / deviation[:, None], directions * deviation
    return whiten.to(moment.dtype), inverse.to(moment.dtype)


@torch.no_grad()
def second_moments(hybrid: Hybrid, documents: Tensor) -> list[Tensor]:
    """``E[u u^T]`` of the inputs u of each hybrid layer.

    Args:
        documents (Tensor): tokens, ``[B, L]``.
    """
    moments = []

    def record(layer, args, kwargs):
        u = kwargs["hidden_states"].flatten(0, 1).float()
        moments.append(u.T @ u / len(u))

    hooks = [
        layer.register_forward_pre_hook(record, with_kwargs=True)
        for layer in hybrid.layers()
    ]
    hybrid.hidden(documents, TEACHER)
    for hook in hooks:
        hook.remove()
    return moments


def interleave(x: Tensor, heads: int) -> Tensor:
    """Shares rows out among heads, so that each gets large and small ones."""
    return x.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def initialize(hybrid: Hybrid, documents: Tensor, w0_std: float, alpha: float) -> None:
    """Sets what training starts from, in every layer.

    Args:
        documents (Tensor): text to measure the layers' inputs on, ``[B, L]``.
        w0_std (float): of the random fast weights of gate and up.
        alpha (float): of every channel.

    Raises:
        SettingError: if the memory is wider than the base's keys and values.
    """
    moments = second_moments(hybrid, documents)
    for layer, moment in zip(hybrid.layers(), moments, strict=True):
        memory, n = layer.memory, hybrid.config.heads
        memory.w0_gate.normal_(std=w0_std)
        memory.w0_up.normal_(std=w0_std)
        memory.rate_bias[: 3 * n].view(n, 3)[:, :2] = STEADY
        layer.alpha.fill_(alpha)
        _project(layer, moment)


def _project(layer: HybridAttention, moment: Tensor) -> None:
    base, memory = layer.base, layer.memory
    n, p = memory.config.heads, memory.config.head_dim
    key, value, out = (
        x.weight.to(moment.dtype) for x in (base.k_proj, base.v_proj, base.o_proj)
    )
    # The memory has one head where query heads of the base share a key and a value.
    by_head = (-1, out.shape[1] // value.shape[0], base.head_dim)
    out = out.unflatten(1, by_head).mean(2).flatten(1)

    if n * p > len(key):
        raise SettingError(
            f"a memory of {n} heads of width {p} is wider than the base's keys and "
            f"values ({len(key)}); lower heads or head_dim"
        )

    def whiten(x: Tensor) -> tuple[Tensor, Tensor]:
        A, inverse = whitening(x @ moment @ x.T, n * p)
        return interleave(A @ x, n), interleave(inverse.T, n).T

    keys, _ = whiten(key)
    values, unwhiten = whiten(value)
    rates = 0.25 * memory.in_proj.weight[3 * n * p :]
    parts = [INPUT * keys, INPUT * keys, 2 * p**-0.5 * values, rates]
    memory.in_proj.weight.copy_(torch.cat(parts))
    memory.o_proj.weight.copy_(out @ unwhiten)
