"""The start of training: a memory that can tell tokens apart.

The inputs of an attention layer, and so its keys, point mostly the same way (the mean
cosine of two keys of SmolLM2 is 0.8). A memory that learns such keys learns only their
mean. Queries and keys are therefore the layer's input, whitened on a few thousand
tokens of text. A query is the key of the token itself and a key that of the token
before, so that a query finds what followed similar tokens. All keys share one
component, which gives each hidden unit a threshold: it answers to few keys, and what
was written under one is not found under all.

Values are those of the base model's attention, whitened, and the output projection
inverts the whitening: a value read back exactly is attention's.

In the last layers a value is the token itself, and reading it back raises its logit,
because no layer is left to use attention's values. If values are made of the token's
embedding (``values`` of :class:`AllMemConfig`), it is exactly the token, in every layer
with a memory; otherwise it is predicted from the layer's input by linear regression.

Tokens that surprised the model are written more strongly than those it expected: there
is room for few tokens of a long document. A third of the heads last: they write next to
nothing else, and everything more weakly, so that less is lost of what was written long
ago.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import AllMemConfig
from ..errors import SettingError
from .documents import Source

CALIBRATION = 6, 1024  # number and length of the texts that a base is measured on
FLOOR = 1e-3  # smallest variance, relative to the largest: below it is noise
INPUT = 0.1  # size of the SiLU's input for queries and keys: it is nearly linear there
VALUE = 2.0  # norm of a value before the SiLU, approximately
RATE = 0.005  # size of the random projections to rates, decays and gates
# Added to the learning rates of gate and up before the softplus, which makes them 1/150
# of that of down: the features that a value was written with have to stay as they are.
STEADY = -5.0
SURPRISE = 0.7  # growth of log(learning rate) with the surprise, per deviation
LASTING = 1 / 3  # share of the heads that last, the last ones
# Their eta is a softplus at 0.4 + 2.6 z, z being the surprise in deviations, and their
# values are smaller than those of the others by a tenth of the initial eta.
LASTING_SURPRISE, LASTING_OFFSET, LASTING_SIZE = 2.6, 0.4, 0.1
# The random fast weights of a gate are SHARPNESS (g - THRESHOLD), where g is standard
# normal over keys. The threshold comes from the component that all keys share.
SHARPNESS = 8.0
THRESHOLD = 1.5
COMMON = 0.5  # share of that component in the norm of queries and keys
TOKEN_LAYERS = 0.2  # share of the layers, the last ones, whose values are tokens
TOKEN_SIZE = 0.15  # norm of their output at alpha = 1, relative to the residual stream


def calibration(source: Source) -> list[list[int]]:
    """Token ids of the texts that a base is measured on."""
    count, length = CALIBRATION
    return [source.passage(length) for _ in range(count)]


@dataclass(frozen=True)
class Layer:
    """Measurements of a layer's attention, in float32.

    Args:
        value (np.ndarray): the base's projection to values, ``[n_kv d, D]``.
        out (np.ndarray): its output projection, ``[D, n_q d]``.
        head_dim (int): d.
        moment (np.ndarray): ``E[u u^T]`` of the layer's normed input u, ``[D, D]``.
        mean (np.ndarray): ``E[u]``, ``[D]``.
        surprise (np.ndarray): ``E[u s]``, ``[D]``, where s is the token's standardized
            negative log-likelihood.
        cross (np.ndarray): ``E[u e^T]``, ``[D, D]``, where e is the token's row of the
            output matrix, minus the mean of all rows.
        size (float): mean norm of the residual stream where the layer adds to it.
    """

    value: np.ndarray
    out: np.ndarray
    head_dim: int
    moment: np.ndarray
    mean: np.ndarray
    surprise: np.ndarray
    cross: np.ndarray
    size: float

    @classmethod
    def measured(
        cls, u: np.ndarray, surprise: np.ndarray, rows: np.ndarray, **base: Any
    ) -> "Layer":
        """The layer with inputs u ``[N, D]``, s and e of :func:`measure_text`."""
        return cls(
            moment=u.T @ u / len(u),
            mean=u.mean(0),
            surprise=u.T @ surprise / len(u),
            cross=u.T @ rows / len(u),
            **base,
        )


@dataclass(frozen=True)
class Output:
    """Measurements of the output matrix and of the embeddings, in float32.

    Args:
        moment (np.ndarray): ``E[e e^T]``, ``[D, D]``, half over the tokens of a text,
            half over the vocabulary; e is as in :class:`Layer`.
        scale (np.ndarray): weight of the last norm, ``[D]``.
        token_moment (np.ndarray): ``E[x x^T]``, ``[D, D]``, where x is a token's normed
            embedding.
        token_cross (np.ndarray): ``E[x e^T]``, ``[D, D]``.
    """

    moment: np.ndarray
    scale: np.ndarray
    token_moment: np.ndarray
    token_cross: np.ndarray


def measure_text(
    documents: list[list[int]],
    losses: np.ndarray,
    embedded: np.ndarray,
    matrix: np.ndarray,
    scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, Output]:
    """Measurements of a text of N tokens.

    Args:
        documents (list): token ids, ``[B, L]``.
        losses (np.ndarray): negative log-likelihoods of the tokens after the first,
            ``[B, L - 1]``. The first counts as expected.
        embedded (np.ndarray): normed embeddings x, ``[N, D]``.
        matrix (np.ndarray): the output matrix, ``[V, D]``.
        scale (np.ndarray): see :class:`Output`.

    Returns:
        tuple: s of each token ``[N]``, e of each token ``[N, D]``, and the output.
    """
    surprise = np.pad(losses, ((0, 0), (1, 0))).flatten()
    matrix = matrix - matrix.mean(0)
    rows = matrix[np.concatenate(documents)]
    output = Output(
        moment=(rows.T @ rows / len(rows) + matrix.T @ matrix / len(matrix)) / 2,
        scale=scale,
        token_moment=embedded.T @ embedded / len(embedded),
        token_cross=embedded.T @ rows / len(embedded),
    )
    return (surprise - surprise.mean()) / surprise.std(), rows, output


def whitening(moment: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """``A [width, d]`` for which ``A x`` has uncorrelated components of variance 1,
    the largest first, and its pseudo-inverse.

    Args:
        moment (np.ndarray): ``E[x x^T]``, ``[d, d]``, not centred, so that a direction
            common to all x becomes as small as any other.
        width (int): at most d.
    """
    variance, directions = np.linalg.eigh(moment.astype(np.float64))
    variance, directions = variance[::-1][:width], directions[:, ::-1][:, :width]
    deviation = np.sqrt(np.maximum(variance, FLOOR * variance[0]))
    return directions.T / deviation[:, None], directions * deviation


def interleave(x: np.ndarray, heads: int) -> np.ndarray:
    """Distributes rows over heads, so that each gets large and small ones."""
    return x.reshape(-1, heads, x.shape[1]).swapaxes(0, 1).reshape(x.shape)


def input_scale(moment: np.ndarray) -> np.ndarray:
    """``S = E[u u^T]^-1/2``, symmetric: the factor of a step of ``in_proj``.

    Inputs point mostly the same way, and the start removes that direction. A step of
    equal size in all directions would bring it back, and make all keys alike again; a
    step in the coordinates ``S u`` does not.

    Args:
        moment (np.ndarray): ``E[u u^T]``, ``[D, D]``.
    """
    variance, directions = np.linalg.eigh(moment.astype(np.float64))
    variance += FLOOR * variance.mean()
    return (directions / np.sqrt(variance)) @ directions.T


def input_scales(
    names: Iterable[str], layers: list[Layer], output: Output
) -> dict[str, np.ndarray]:
    """:func:`input_scale` for each projection of an input.

    Args:
        names (Iterable): of all trainable parameters, layer by layer.
        layers, output: the measurements.
    """
    names = list(names)
    inputs = [name for name in names if name.endswith("in_proj.weight")]
    scales = {
        name: input_scale(layer.moment)
        for name, layer in zip(inputs, layers, strict=True)
    }
    if values := [name for name in names if name.endswith("value_proj.weight")]:
        scales |= dict.fromkeys(values, input_scale(output.token_moment))
    return scales


def initial_memory(
    config: AllMemConfig, layers: list[Layer], output: Output, alpha: float, seed: int
) -> list[dict[str, np.ndarray]]:
    """The initial parameters of every hybrid layer, in order.

    Args:
        config (AllMemConfig): the memory's sizes.
        layers (list): of the hybrid layers.
        output (Output): of the model.
        alpha (float): of every channel.
        seed (int): of the random features.

    Returns:
        list: float32 parameters by their names in the layer.

    Raises:
        SettingError: if the memory is wider than the model.
    """
    width = config.heads * config.head_dim
    if width > len(layers[0].out):
        raise SettingError(
            f"a memory of {config.heads} heads of width {config.head_dim} is wider "
            f"than the model ({len(layers[0].out)}); lower heads or head_dim"
        )
    of_tokens = config.values == "token"
    tokens = len(layers) if of_tokens else round(TOKEN_LAYERS * len(layers))
    rng = np.random.default_rng(seed)
    start = []
    for i, layer in enumerate(layers):
        if i < len(layers) - tokens:
            value, out = _attention_values(layer, width)
        else:
            moments = layer.moment, layer.cross
            if of_tokens:
                moments = output.token_moment, output.token_cross
            value, out = _token_values(*moments, layer.size, output, width)
        arrays = _parameters(config, layer, value, out, rng)
        arrays["alpha"] = np.full(len(out), alpha)
        start.append({name: x.astype(np.float32) for name, x in arrays.items()})
    return start


def _attention_values(layer: Layer, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The base's values, and its output projection."""
    # Query heads of the base that share a key and a value are one head here.
    D, kv_heads = len(layer.out), len(layer.value) // layer.head_dim
    out = layer.out.reshape(D, kv_heads, -1, layer.head_dim).mean(2).reshape(D, -1)
    value = layer.value
    if len(value) < width:  # the memory is wider: its values are the input itself
        out, value = out @ value, np.eye(D)
    whiten, inverse = whitening(value @ layer.moment @ value.T, width)
    return whiten @ value, out @ inverse


def _token_values(
    moment: np.ndarray, cross: np.ndarray, size: float, output: Output, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The prediction of a token from an input, and what raises its logit.

    Args:
        moment, cross (np.ndarray): ``E[x x^T]`` and ``E[x e^T]`` of the input x.
        size (float): see :class:`Layer`.
    """
    whiten, inverse = whitening(output.moment, width)
    value = _regress(moment, cross @ whiten.T).T
    value /= np.sqrt(np.einsum("id,de,ie->i", value, moment, value))[:, None]
    out = whiten.T / output.scale[:, None]
    return value, out * (TOKEN_SIZE * size / np.linalg.norm(out))


def _regress(moment: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ridge regression from ``E[x x^T]`` and ``E[x target]``."""
    ridge = FLOOR * np.trace(moment) / len(moment)
    return np.linalg.solve(moment + ridge * np.eye(len(moment)), target)


def _keys(layer: Layer, heads: int, width: int) -> np.ndarray:
    """The projection to queries or keys, ``[heads width, D]``. The last component of
    each head is the same for all inputs; the others are whitened."""
    one = _regress(layer.moment, layer.mean)  # one @ u is about 1
    one /= one @ layer.mean
    centre = np.eye(len(one)) - np.outer(layer.mean, one)
    whiten, _ = whitening(centre @ layer.moment @ centre.T, heads * (width - 1))
    apart = INPUT * interleave(whiten @ centre, heads).reshape(heads, width - 1, -1)
    # The SiLU halves small inputs.
    norm = INPUT / 2 * np.sqrt(width - 1)
    one *= _before_silu(norm * COMMON / np.sqrt(1 - COMMON**2))
    common = np.broadcast_to(one, (heads, 1, len(one)))
    return np.concatenate([apart, common], axis=1).reshape(heads * width, -1)


def _before_silu(y: float) -> float:
    """The x > 0 with ``SiLU(x) = y``."""
    x = y
    for _ in range(50):
        x = y * (1 + np.exp(-x))
    return x


def _surprise(layer: Layer) -> np.ndarray:
    """The prediction of a token's surprise from the layer's input, ``[D]``; it deviates
    from its mean by 1."""
    surprise = _regress(layer.moment, layer.surprise)
    mean = surprise @ layer.mean
    return surprise / np.sqrt(surprise @ layer.moment @ surprise - mean**2)


def make_lasting(
    config: AllMemConfig,
    layer: Layer,
    rates: np.ndarray,
    rate_bias: np.ndarray,
    value: np.ndarray,
) -> None:
    """Makes the last heads of a memory last.

    Args:
        config (AllMemConfig): the memory's sizes.
        layer (Layer): the layer's measurements.
        rates (np.ndarray): the projection to rates, decays and gates, ``[5n, D]``,
            changed in place.
        rate_bias (np.ndarray): ``[5n]``, changed in place.
        value (np.ndarray): the projection to values, ``[np, D]``, changed in place.
    """
    n, p = config.heads, config.head_dim
    first = n - round(LASTING * n)
    surprise = LASTING_SURPRISE * _surprise(layer)
    initial = np.log(np.expm1(config.learning_rate))  # is added before the softplus
    rows = slice(3 * first, 3 * n)
    rates[rows] = surprise
    rate_bias[rows] = LASTING_OFFSET - surprise @ layer.mean - initial
    rate_bias[rows].reshape(-1, 3)[:, :2] += STEADY
    value[first * p :] *= LASTING_SIZE * config.learning_rate


def _parameters(
    config: AllMemConfig,
    layer: Layer,
    value: np.ndarray,
    out: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    n, p, h = config.heads, config.head_dim, config.hidden_dim
    key = _keys(layer, n, p)
    gate, up = rng.normal(size=(2, n, h, p)) / np.sqrt(1 - COMMON**2)
    gate[..., -1], up[..., -1] = -THRESHOLD / COMMON, 0
    surprise = _surprise(layer)
    rates = rng.normal(scale=RATE, size=(5 * n, len(layer.moment)))
    rates[: 3 * n] = SURPRISE * surprise
    rate_bias = np.zeros(5 * n)
    rate_bias[: 3 * n] = -SURPRISE * surprise @ layer.mean
    rate_bias[: 3 * n].reshape(n, 3)[:, :2] += STEADY
    conv = np.zeros((3, n * p, config.conv_kernel))
    conv[:, :, -1] = 1
    conv[1] = np.roll(conv[1], -1, axis=-1)  # keys: the token before
    value = VALUE * p**-0.5 * interleave(value, n)
    make_lasting(config, layer, rates, rate_bias, value)
    if config.values == "token":
        projections = {
            "memory.in_proj.weight": np.concatenate([key, key, rates]),
            "memory.value_proj.weight": value,
        }
    else:
        projections = {
            "memory.in_proj.weight": np.concatenate([key, key, value, rates])
        }
    return {
        **projections,
        "memory.rate_bias": rate_bias,
        "memory.conv_weight": conv.reshape(-1, config.conv_kernel),
        "memory.w0_gate": SHARPNESS * gate,
        "memory.w0_up": up,
        "memory.w0_down": rng.normal(scale=h**-0.5, size=(n, p, h)),
        "memory.o_proj.weight": interleave(out.T, n).T,
    }
