"""The mathematics of the memory network in PyTorch, chunk by chunk.

A head's memory is a residual SwiGLU network that is trained while it reads (AllMem,
arXiv 2602.13680, section 3). The inner gradient is written out, so that training
differentiates once, not twice. N counts the heads of all documents, document by
document; L tokens, head width p, hidden width h.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
NORM_FLOOR = 1e-6  # the derivative of a norm is NaN at 0


class FastWeights(NamedTuple):
    """Three matrices of a memory network: gate and up ``[N, h, p]``, down
    ``[N, p, h]``."""

    gate: Tensor
    up: Tensor
    down: Tensor


class Tokens(NamedTuple):
    """The memory's inputs for each token."""

    queries: Tensor  # [N, L, p]
    keys: Tensor  # [N, L, p]
    values: Tensor  # [N, L, p]
    rates: Tensor  # eta for gate, up and down, [N, L, 3]
    decay: Tensor  # m, [N, L]

    def chunks(self, size: int) -> list["Tokens"]:
        return [
            Tokens(*x) for x in zip(*(x.split(size, dim=1) for x in self), strict=True)
        ]


def norm(x: Tensor, dim: int | tuple[int, int]) -> Tensor:
    squared = x.square().sum(dim, keepdim=True)
    return squared.clamp(min=NORM_FLOOR**2).sqrt()


def read(weights: FastWeights, queries: Tensor) -> Tensor:
    """``(SiLU(Q Wg^T) * (Q Wu^T)) Wd^T + Q``."""
    hidden = F.silu(queries @ weights.gate.mT) * (queries @ weights.up.mT)
    return hidden @ weights.down.mT + queries


def normalize(weights: FastWeights, norms: FastWeights) -> FastWeights:
    """U: the weights with the row norms N of the initial ones."""
    return FastWeights(
        *(w * (n / (norm(w, -1) + EPS)) for w, n in zip(weights, norms, strict=True))
    )


def gradient(weights: FastWeights, tokens: Tokens) -> FastWeights:
    """The gradient of ``-sum_t <f(k_t), v_t>``, with each token's learning rates."""
    keys, values = tokens.keys, tokens.values
    gate, up = keys @ weights.gate.mT, keys @ weights.up.mT
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    d_hidden = -(values @ weights.down)
    d_gate = d_hidden * up * (sigmoid + silu * (1 - sigmoid))
    d_up = d_hidden * silu
    rate_gate, rate_up, rate_down = tokens.rates.split(1, dim=-1)
    return FastWeights(
        gate=d_gate.mT @ (rate_gate * keys),
        up=d_up.mT @ (rate_up * keys),
        down=-values.mT @ (rate_down * silu * up),
    )


def clip(grad: Tensor, max_norm: float) -> Tensor:
    """``G min(1, Theta / ||G||_F)``, for each head."""
    return grad * (max_norm / norm(grad, (-2, -1))).clamp(max=1)


def states(
    initial: FastWeights, chunks: list[Tokens], max_norm: float
) -> Iterator[tuple[FastWeights, FastWeights]]:
    """Yields W and M before each chunk and after the last.

    A chunk is written as ``M <- mu M - clip(G)``, ``W <- U + M``.

    Args:
        initial (FastWeights): W0.
        chunks (list): the tokens of each chunk.
        max_norm (float): Theta.
    """
    norms = FastWeights(*(norm(w, -1) for w in initial))
    weights, momentum = initial, FastWeights(*map(torch.zeros_like, initial))
    yield weights, momentum
    for chunk in chunks:
        unified = normalize(weights, norms)
        decay = chunk.decay.mean(dim=1)[:, None, None]
        steps = zip(momentum, gradient(unified, chunk), strict=True)
        momentum = FastWeights(*(decay * m - clip(g, max_norm) for m, g in steps))
        weights = FastWeights(*(u + m for u, m in zip(unified, momentum, strict=True)))
        yield weights, momentum


def run(
    initial: FastWeights,
    tokens: Tokens,
    *,
    chunk: int,
    max_norm: float,
    write: bool = True,
    shift: int = 0,
) -> Tensor:
    """Reads a document: each chunk with the weights after the chunks before it.

    Args:
        initial (FastWeights): W0.
        tokens (Tokens): the document.
        chunk (int): c, tokens between two updates.
        max_norm (float): Theta.
        write (bool): ``False`` never updates the weights.
        shift (int): head i reads the weights of head ``i - shift``. With the number of
            heads, each document reads the memory of the one before it.

    Returns:
        Tensor: the output of the queries, ``[N, L, p]``.
    """
    if not write:
        return read(initial, tokens.queries)
    outputs, chunks = [], tokens.chunks(chunk)
    # No chunk reads the weights after the last one: they are not computed.
    for part, (w, _) in zip(chunks, states(initial, chunks, max_norm), strict=False):
        seen = FastWeights(*(x.roll(shift, 0) for x in w)) if shift else w
        outputs.append(read(seen, part.queries))
    return torch.cat(outputs, dim=1)
