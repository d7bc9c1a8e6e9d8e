"""The memory's four operations in MLX's own operations: the reference for the kernels.

B documents, n heads of width p, h hidden units, T tokens. A *row* is what one token
leaves for learning: k, v, eta for gate, up and down, and the momentum decay m, 2p + 4
numbers in float32. ``kernels.py`` has the same functions on Metal.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import fast_weights
from .fast_weights import FastWeights, Matrices

RMS_EPS = 1e-6
L2_EPS = 1e-5
NORM_FLOOR = 1e-10


def rate_offset(learning_rate: float) -> float:
    """b0, where ``softplus(b0)`` is the learning rate."""
    return learning_rate + math.log(-math.expm1(-learning_rate))


def _unit(x: mx.array) -> mx.array:
    """``L2(x) = x / (||x|| + 1e-5)``."""
    # The first token has no key when keys are of the token before; the derivative of
    # a norm is not a number at 0.
    squared = mx.maximum(mx.square(x).sum(-1, keepdims=True), NORM_FLOOR**2)
    return x / (mx.sqrt(squared) + L2_EPS)


@mx.compile
def memory_inputs(
    *,
    projected: mx.array,
    conv_state: mx.array,
    conv_weight: mx.array,
    rate_bias: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    learning_rate: float,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The memory's queries, rows and gates of T tokens (AllMem, section 3):

        q, k = L2(RMSNorm(SiLU(conv(x)))),  v = SiLU(conv(x))
        eta = softplus(x + bias + b0),  m, g = sigmoid(x + bias)

    Args:
        projected (mx.array): x for q, k, v, eta, m and g, ``[B, T, 3np + 5n]``.
        conv_state (mx.array): q, k and v of the ``taps - 1`` tokens before,
            ``[B, taps - 1, 3np]``.
        conv_weight (mx.array): ``[3np, taps]``.
        rate_bias (mx.array): of eta (3n), m (n) and g (n), ``[5n]``.
        q_norm (mx.array): RMSNorm weight, ``[p]``.
        k_norm (mx.array): the same for k.
        learning_rate (float): ``softplus(b0)``.

    Returns:
        tuple: in float32, queries ``[B, n, T, p]``, rows ``[B, n, T, 2p + 4]`` and
        gates ``[B, n, T]``; and the new conv_state.
    """
    B, T, _ = projected.shape
    n, p = rate_bias.size // 5, q_norm.size
    taps = conv_weight.shape[1]
    qkv, rates = mx.split(projected, [3 * n * p], axis=-1)
    qkv = mx.concatenate([conv_state, qkv], axis=1)
    # A copy: a slice would keep all of it.
    conv_state = mx.take(qkv, mx.arange(T, T + taps - 1), axis=1)

    qkv, taps_of = qkv.astype(mx.float32), conv_weight.astype(mx.float32)
    mixed: Any = sum(taps_of[:, i] * qkv[:, i : i + T] for i in range(taps))
    mixed = fast_weights.silu(mixed).reshape(B, T, 3, n, p).transpose(2, 0, 3, 1, 4)
    queries, keys, values = mixed
    queries = _unit(mx.fast.rms_norm(queries, q_norm, RMS_EPS))
    keys = _unit(mx.fast.rms_norm(keys, k_norm, RMS_EPS))

    rates = rates.astype(mx.float32) + rate_bias
    eta, decay, gates = mx.split(rates, [3 * n, 4 * n], axis=-1)
    eta = nn.softplus(eta + rate_offset(learning_rate))
    eta = eta.reshape(B, T, n, 3).transpose(0, 2, 1, 3)
    decay = mx.sigmoid(decay).swapaxes(1, 2)[..., None]
    gates = mx.sigmoid(gates).swapaxes(1, 2)
    rows = mx.concatenate([keys, values, eta, decay], axis=-1)
    return queries, rows, gates, conv_state


def memory_read(
    *,
    weights: FastWeights,
    queries: mx.array,
    gates: mx.array,
    norm: mx.array,
    eps: float,
    dtype: mx.Dtype,
) -> mx.array:
    """Reads the memory: ``g RMSNorm((SiLU(Q Wg^T) * (Q Wu^T)) Wd^T + Q)``.

    Args:
        weights (FastWeights): W, not normalised. What is never written is W0, without
            a batch dimension.
        queries (mx.array): Q, ``[B, n, T, p]``.
        gates (mx.array): g, ``[B, n, T]``.
        norm (mx.array): RMSNorm weight, ``[p]``.
        eps (float): RMSNorm's, see ``output_eps`` of :class:`AllMemConfig`.
        dtype (mx.Dtype): of the result.

    Returns:
        mx.array: the heads side by side, ``[B, T, np]``.
    """
    B, n, T, p = queries.shape
    values = mx.fast.rms_norm(fast_weights.read(weights, queries), norm, eps)
    values = (gates[..., None] * values).transpose(0, 2, 1, 3)
    return values.reshape(B, T, n * p).astype(dtype)


def memory_fold(
    *,
    weights: FastWeights,
    scales: Matrices,
    grads: Matrices | None,
    decay_sum: mx.array | None,
    rows: mx.array,
) -> tuple[Matrices, mx.array, mx.array]:
    """Adds the gradient of T tokens to G, and their m to the sum of m.

    Args:
        weights (FastWeights): W, as in :func:`memory_read`.
        scales (Matrices): those of the rows in U of what is written, the last matrices,
            :func:`.row_scales`. The others are in U as they are.
        grads (Matrices): G, the chunk's gradient so far; ``None`` at its start.
        decay_sum (mx.array): the chunk's sum of m so far, ``[B, n]``, or ``None``.
        rows (mx.array): ``[B, n, T, 2p + 4]``.

    Returns:
        tuple: the new G of what is written; the new sum; and the sums of squares of the
        new G, in parts, ``[B, n, matrices, parts]``, which a write that follows needs.
    """
    p, written = weights.gate.shape[-1], len(scales)
    keys, values, rates, decays = mx.split(rows, [p, 2 * p, 2 * p + 3], axis=-1)
    unified = fast_weights.normalize(weights[-written:], scales)
    # What is not taken of it is not computed.
    gradient = fast_weights.gradient(weights.replaced(unified), keys, values, rates)
    added: Matrices = gradient[-written:]
    decays = decays.sum((-2, -1))
    if grads is not None and decay_sum is not None:
        added = tuple(g + new for g, new in zip(grads, added, strict=True))
        decays = decay_sum + decays
    return added, decays, fast_weights.squared_norms(added)[..., None]


def memory_write(
    *,
    weights: Matrices,
    scales: Matrices,
    momentum: Matrices,
    grads: Matrices,
    squares: mx.array,
    decay_sum: mx.array,
    tokens: int,
    norms: Matrices,
    max_norm: float,
) -> tuple[Matrices, Matrices, Matrices]:
    """Ends a chunk: ``M <- mu M - clip(G)``, ``W <- U + M``, for what is written.

    Args:
        weights (Matrices): W.
        scales (Matrices): those of its rows in U.
        momentum (Matrices): M of the chunk before.
        grads (Matrices): G of the whole chunk.
        squares (mx.array): of G, as the last :func:`memory_fold` left them.
        decay_sum (mx.array): the chunk's sum of m, ``[B, n]``; mu is their mean.
        tokens (int): number of tokens of the chunk.
        norms (Matrices): N, :func:`.row_norms` of the initial weights,
            ``[n, rows, 1]``.
        max_norm (float): Theta.

    Returns:
        tuple: the new W, its scales, and M.
    """
    unified = fast_weights.normalize(weights, scales)
    weights, momentum = fast_weights.write(
        unified, momentum, grads, squares.sum(-1), decay_sum / tokens, max_norm
    )
    return weights, fast_weights.row_scales(weights, norms), momentum
