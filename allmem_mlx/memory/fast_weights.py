"""The memory network's mathematics: read, gradient and write as pure functions.

One head's memory is a residual SwiGLU network whose three matrices, the fast weights,
are trained while it reads, or the last of them is (AllMem, arXiv 2602.13680, section
3). All arrays are float32 and may have any leading dimensions, here ``[B, n]`` for
batch and heads; T tokens, head width p, hidden width h. The symbols are the paper's.
"""

import math
from typing import NamedTuple

import mlx.core as mx

EPS = 1e-5
NORM_FLOOR = 1e-6
LOG_2 = math.log(2)

# What is trained of a memory network, or has its shapes: all three matrices, or down.
Matrices = tuple[mx.array, ...]


class FastWeights(NamedTuple):
    """The three matrices of one memory network, or anything of their shapes.

    Args:
        gate (mx.array): ``[..., h, p]``.
        up (mx.array): ``[..., h, p]``.
        down (mx.array): ``[..., p, h]``.
    """

    gate: mx.array
    up: mx.array
    down: mx.array

    def replaced(self, last: Matrices) -> "FastWeights":
        """The network with others in the place of its last matrices."""
        return FastWeights(*self[: len(self) - len(last)], *last)


def _transpose(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)


def sigmoid(x: mx.array) -> mx.array:
    """``1 / (1 + e^-x)``, as ``1 / (1 + 2^(-x / log 2))``: on a CPU MLX's power takes a
    third of the time of its exp."""
    # 2^126 is finite, and so is the derivative.
    return 1 / (1 + mx.power(2.0, mx.minimum(-x / LOG_2, 126)))


def silu(x: mx.array) -> mx.array:
    """``x / (1 + e^-x)``."""
    return x * sigmoid(x)


def read(weights: FastWeights, queries: mx.array) -> mx.array:
    """Reads the memory: ``(SiLU(Q Wg^T) * (Q Wu^T)) Wd^T + Q``.

    Args:
        weights (FastWeights): W as the last write left it, not normalised.
        queries (mx.array): Q, ``[..., T, p]``.

    Returns:
        mx.array: ``[..., T, p]``.
    """
    gate = queries @ _transpose(weights.gate)
    hidden = silu(gate) * (queries @ _transpose(weights.up))
    return hidden @ _transpose(weights.down) + queries


def row_norms(weights: Matrices) -> Matrices:
    """L2 norms over the input dimension, kept as ``[..., rows, 1]``."""
    return tuple(mx.sqrt(mx.square(w) @ mx.ones((w.shape[-1], 1))) for w in weights)


def row_scales(weights: Matrices, norms: Matrices) -> Matrices:
    """Scales that give every row its initial norm: ``N_r / (||W[r]|| + 1e-5)``.

    Args:
        weights (Matrices): W.
        norms (Matrices): N, the :func:`row_norms` of the initial weights.

    Returns:
        Matrices: ``[..., rows, 1]``.
    """
    lengths = row_norms(weights)
    return tuple(n / (x + EPS) for n, x in zip(norms, lengths, strict=True))


def normalize(weights: Matrices, scales: Matrices) -> Matrices:
    """``U[r] = scale_r W[r]``, with the :func:`row_scales` of W."""
    return tuple(w * s for w, s in zip(weights, scales, strict=True))


def gradient(
    weights: FastWeights, keys: mx.array, values: mx.array, rates: mx.array
) -> FastWeights:
    """Gradient of ``-sum_t <f(k_t), v_t>``, each token weighted by its learning rates.

    Args:
        weights (FastWeights): U, the normalised weights at which it is taken.
        keys (mx.array): K, ``[..., T, p]``.
        values (mx.array): V, ``[..., T, p]``.
        rates (mx.array): eta for gate, up and down, ``[..., T, 3]``.

    Returns:
        FastWeights: the sum over the T tokens, not the mean.
    """
    gate = keys @ _transpose(weights.gate)
    up = keys @ _transpose(weights.up)
    slope = sigmoid(gate)
    activated = gate * slope
    d_hidden = -(values @ weights.down)
    d_gate = d_hidden * up * slope * (1 + gate * (1 - slope))
    d_up = d_hidden * activated
    rate_gate, rate_up, rate_down = mx.split(rates, 3, axis=-1)
    return FastWeights(
        gate=_transpose(d_gate) @ (rate_gate * keys),
        up=_transpose(d_up) @ (rate_up * keys),
        down=_transpose(-values) @ (rate_down * activated * up),
    )


def squared_norms(grads: Matrices) -> mx.array:
    """Squares of the Frobenius norms, ``[..., matrices]``."""
    # Products: on a CPU they are several times as fast as sums.
    rows = (g.flatten(-2)[..., None, :] for g in grads)
    return mx.concatenate([x @ _transpose(x) for x in rows], axis=-1)[..., 0, :]


def clip(grads: Matrices, squares: mx.array, max_norm: float) -> Matrices:
    """Limits the Frobenius norm: ``G min(1, Theta / ||G||)``, for each matrix alone.

    Args:
        grads (Matrices): G.
        squares (mx.array): the :func:`squared_norms` of G.
        max_norm (float): Theta.
    """
    # The derivative of a square root is infinite at 0.
    norms = mx.sqrt(mx.maximum(squares, NORM_FLOOR**2))
    limits = mx.minimum(1, max_norm / norms)[..., None]
    factors = mx.split(limits, len(grads), axis=-2)
    return tuple(g * f for g, f in zip(grads, factors, strict=True))


def write(
    weights: Matrices,
    momentum: Matrices,
    grads: Matrices,
    squares: mx.array,
    mu: mx.array,
    max_norm: float,
) -> tuple[Matrices, Matrices]:
    """Ends a chunk: ``M <- mu M - clip(G)``, ``W <- U + M``.

    Args:
        weights (Matrices): U, the normalised weights.
        momentum (Matrices): M of the chunk before.
        grads (Matrices): G, the chunk's summed :func:`gradient`.
        squares (mx.array): the :func:`squared_norms` of G, ``[..., matrices]``.
        mu (mx.array): the mean momentum decay m of the chunk's tokens, ``[...]``.
        max_norm (float): Theta.

    Returns:
        tuple: the new W and M.
    """
    mu = mu[..., None, None]
    clipped = clip(grads, squares, max_norm)
    momentum = tuple(mu * m - g for m, g in zip(momentum, clipped, strict=True))
    return tuple(u + m for u, m in zip(weights, momentum, strict=True)), momentum
