"""Where training starts: a memory that can tell tokens apart.

The inputs of an attention layer, and so its keys, point mostly the same way (the mean
cosine of two keys of SmolLM2 is 0.8). A memory that learns such keys learns one thing,
their mean. The projections are therefore those of the base model's own keys and values,
whitened on a few thousand tokens of text, and the output projection undoes it: a value
read back exactly is what the base model's attention would have brought.
"""

import torch
from hybrid import TEACHER, Hybrid, HybridAttention
from torch import Tensor

FLOOR = 1e-3  # of the largest variance: what varies less is noise


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
    return directions.T / deviation[:, None], directions * deviation


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
def initialize(hybrid: Hybrid, documents: Tensor, opts=None) -> None:
    """Sets the memory's projections.

    Args:
        documents (Tensor): text to measure on, ``[B, L]``.
    """
    for layer, moment in zip(
        hybrid.layers(), second_moments(hybrid, documents), strict=True
    ):
        _initialize_layer(layer, moment, opts or {})


def _initialize_layer(layer: HybridAttention, moment: Tensor, opts) -> None:
    base, memory = layer.base, layer.memory
    n, p = memory.config.heads, memory.config.head_dim
    key, value, out, query = (
        x.weight.float() for x in (base.k_proj, base.v_proj, base.o_proj, base.q_proj)
    )
    group = out.shape[1] // value.shape[0]
    by_head = (-1, group, base.head_dim)  # query heads that share a key and value head
    out = out.unflatten(1, by_head).mean(2).flatten(1)
    query = query.unflatten(0, by_head).mean(1).flatten(0, 1)

    def whiten(x):
        A, inverse = (m.float() for m in whitening(x @ moment @ x.T, n * p))
        return interleave(A @ x, n), interleave(inverse.T, n).T

    keys, _ = whiten(key)
    values, unwhiten = whiten(value)
    queries = keys if opts.get("q", "key") == "key" else whiten(query)[0]
    s = opts.get("qk_scale", 0.1)
    vs = opts.get("v_scale", p**-0.5)
    projections = torch.cat([s * queries, s * keys, vs * values])
    memory.in_proj.weight[: 3 * n * p] = projections
    memory.in_proj.weight[3 * n * p :] *= 0.25
    memory.o_proj.weight.copy_(out @ unwhiten)
