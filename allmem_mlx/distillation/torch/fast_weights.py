"""The mathematics of the memory network in PyTorch, chunk by chunk.

A head's memory is a residual SwiGLU network that is trained while it reads (AllMem,
arXiv 2602.13680, section 3). The inner gradient is written out, so that training
differentiates once, not twice. N counts the heads of all documents, document by
document; L tokens, head width p, hidden width h.
"""

from collections.abc import Iterator, Sequence
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


State = tuple[FastWeights, dict[str, Tensor]]  # W, and M of what is written


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


def normalize(weights: Tensor, norms: Tensor) -> Tensor:
    """U: a matrix with the row norms N of the initial one."""
    return weights * (norms / (norm(weights, -1) + EPS))


def gradient(
    weights: FastWeights, tokens: Tokens, written: Sequence[str]
) -> dict[str, Tensor]:
    """The gradient of ``-sum_t <f(k_t), v_t>`` for the matrices that are written, with
    each token's learning rates."""
    keys, values = tokens.keys, tokens.values
    gate, up = keys @ weights.gate.mT, keys @ weights.up.mT
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    rate_gate, rate_up, rate_down = tokens.rates.split(1, dim=-1)
    grads = {"down": -values.mT @ (rate_down * silu * up)}
    if "gate" in written:
        d_hidden = -(values @ weights.down)
        d_gate = d_hidden * up * (sigmoid + silu * (1 - sigmoid))
        grads["gate"] = d_gate.mT @ (rate_gate * keys)
        grads["up"] = (d_hidden * silu).mT @ (rate_up * keys)
    return grads


def clip(grad: Tensor, max_norm: float) -> Tensor:
    """``G min(1, Theta / ||G||_F)``, for each head."""
    return grad * (max_norm / norm(grad, (-2, -1))).clamp(max=1)


def states(
    initial: FastWeights,
    chunks: list[Tokens],
    max_norm: float,
    written: Sequence[str],
    state: State | None = None,
) -> Iterator[State]:
    """Yields W and M before each chunk and after the last.

    A chunk is written as ``M <- mu M - clip(G)``, ``W <- U + M``.

    Args:
        initial (FastWeights): W0.
        chunks (list): the tokens of each chunk.
        max_norm (float): Theta.
        written (Sequence[str]): the matrices that change.
        state (State): W and M before the first; W0 and 0 if ``None``.
    """
    norms = {x: norm(getattr(initial, x), -1) for x in written}
    zero = {x: torch.zeros_like(getattr(initial, x)) for x in written}
    weights, momentum = state or (initial, zero)
    yield weights, momentum
    lengths = {x: n.detach() for x, n in norms.items()} if state else norms
    for chunk in chunks:
        unified = weights._replace(
            **{x: normalize(getattr(weights, x), lengths[x]) for x in written}
        )
        lengths = norms
        decay = chunk.decay.mean(dim=1)[:, None, None]
        grads = gradient(unified, chunk, written)
        momentum = {x: decay * momentum[x] - clip(grads[x], max_norm) for x in written}
        weights = unified._replace(
            **{x: getattr(unified, x) + move for x, move in momentum.items()}
        )
        yield weights, momentum


def run(
    initial: FastWeights,
    tokens: Tokens,
    *,
    chunk: int,
    max_norm: float,
    written: Sequence[str],
    state: State | None = None,
    write: bool = True,
    shift: int = 0,
) -> tuple[Tensor, State]:
    """Reads tokens: each chunk with the weights after the chunks before it.

    Args:
        initial (FastWeights): W0.
        tokens (Tokens): what is read.
        chunk (int): c, tokens between two updates.
        max_norm (float): Theta.
        written (Sequence[str]): the matrices that change.
        state (State): W and M before the tokens; those of the start if ``None``.
        write (bool): ``False`` never updates the weights.
        shift (int): head i reads the weights of head ``i - shift``. With the number of
            heads, each document reads the memory of the one before it.

    Returns:
        tuple: the output of the queries, ``[N, L, p]``, and W and M after the tokens,
        without a gradient.
    """
    chunks, outputs = tokens.chunks(chunk), []
    before = states(initial, chunks, max_norm, written, state)
    if not write:
        weights, momentum = next(before)
        return read(weights, tokens.queries), (weights, momentum)
    for part, (w, _) in zip(chunks, before, strict=False):
        seen = FastWeights(*(x.roll(shift, 0) for x in w)) if shift else w
        outputs.append(read(seen, part.queries))
    with torch.no_grad():
        weights, momentum = next(before)
    return torch.cat(outputs, dim=1), (weights, momentum)
