"""The memory network's mathematics in PyTorch, one chunk after the other.

One head's memory is a residual SwiGLU network, trained while it reads (AllMem,
arXiv 2602.13680, section 3). The inner gradient is written out, so that training
differentiates through it once, not twice. N counts the heads of all documents, document
by document; L tokens, head width p, hidden width h.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
NORM_FLOOR = 1e-6  # the derivative of a norm is not a number at 0


class FastWeights(NamedTuple):
    """Three matrices of a memory network: gate and up ``[N, h, p]``, down
    ``[N, p, h]``."""

    gate: Tensor
    up: Tensor
    down: Tensor


class Tokens(NamedTuple):
    """What the memory takes of each token."""

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
    """Of ``-sum_t <f(k_t), v_t>``, each token weighted by its learning rates."""
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


def update(
    weights: FastWeights,
    momentum: FastWeights,
    norms: FastWeights,
    chunk: Tokens,
    max_norm: float,
) -> tuple[FastWeights, FastWeights]:
    """Writes a chunk: ``M <- mu M - clip(G)``, ``W <- U + M``.

    Args:
        weights (FastWeights): W, not normalised.
        momentum (FastWeights): M.
        norms (FastWeights): row norms N of the initial weights.
        chunk (Tokens): the chunk's.
        max_norm (float): Theta.

    Returns:
        tuple: the new W and M.
    """
    unified = normalize(weights, norms)
    decay = chunk.decay.mean(dim=1)[:, None, None]
    grads = gradient(unified, chunk)
    momentum = FastWeights(
        *(decay * m - clip(g, max_norm) for m, g in zip(momentum, grads, strict=True))
    )
    weights = FastWeights(*(u + m for u, m in zip(unified, momentum, strict=True)))
    return weights, momentum


def run(
    initial: FastWeights,
    tokens: Tokens,
    *,
    chunk: int,
    max_norm: float,
    write: bool = True,
    shift: int = 0,
) -> Tensor:
    """Reads a document: each chunk with the weights that the chunks before it left.

    Args:
        initial (FastWeights): W0.
        tokens (Tokens): the document's.
        chunk (int): c, tokens between two updates.
        max_norm (float): Theta.
        write (bool): ``False`` never updates the weights, a control.
        shift (int): head i reads the weights of head ``i - shift``: with the number of
            heads, the documents of a batch read each other's memory, a control.

    Returns:
        Tensor: what the queries read, ``[N, L, p]``.
    """
    if not write:
        return read(initial, tokens.queries)
    norms = FastWeights(*(norm(w, -1) for w in initial))
    weights = initial
    momentum = FastWeights(*(torch.zeros_like(w) for w in initial))
    reads = []
    parts = tokens.chunks(chunk)
    for part in parts:
        seen = FastWeights(*(w.roll(shift, 0) for w in weights)) if shift else weights
        reads.append(read(seen, part.queries))
        if part is parts[-1]:  # nobody reads what it would write
            break
        weights, momentum = update(weights, momentum, norms, part, max_norm)
    return torch.cat(reads, dim=1)
