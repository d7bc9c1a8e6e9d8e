"""The memory's mathematics against independent formulas, and against LaCT."""

import mlx.core as mx
import numpy as np
import pytest
from helpers import assert_close, relative_error

from allmem_mlx.config import AllMemConfig
from allmem_mlx.memory.fast_weights import EPS, FastWeights, Matrices
from allmem_mlx.memory.layer import Memory, fast_weights

OFF = 1e6  # a Theta that never clips
SHAPES = [
    # leading dimensions, tokens, head width, hidden width
    ((), 5, 4, 6),
    ((3,), 1, 16, 32),
    ((2, 3), 33, 8, 24),
    ((1, 2), 64, 64, 128),
]


def random_weights(rng, leading=(2, 3), p=8, h=16) -> FastWeights:
    """Of the size of the default initialisation."""
    shapes = [(h, p), (h, p), (p, h)]
    scales = [0.5, 0.5, h**-0.5]
    return FastWeights(
        *(
            mx.array(rng.normal(0, scale, (*leading, *shape)), mx.float32)
            for shape, scale in zip(shapes, scales, strict=True)
        )
    )


def random_pairs(rng, leading, tokens, p) -> tuple[mx.array, mx.array, mx.array]:
    """Unit keys, values and positive rates."""
    keys = rng.normal(size=(*leading, tokens, p))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    values = rng.normal(size=(*leading, tokens, p))
    rates = rng.uniform(0.01, 1, (*leading, tokens, 3))
    return tuple(mx.array(x, mx.float32) for x in (keys, values, rates))


def test_sigmoid_and_silu_and_their_slopes():
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e20, -200, -88.8, 88.8, 1e20]])
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x))
    slope = expected * (1 - expected)
    given = mx.array(x, mx.float32)
    for function, value, derivative in (
        (fast_weights.sigmoid, expected, slope),
        (fast_weights.silu, x * expected, expected + x * slope),
    ):
        assert np.allclose(function(given), value, rtol=1e-5, atol=1e-12)
        found = mx.grad(lambda x, f=function: f(x).sum())(given)
        assert np.allclose(found, derivative, rtol=1e-4, atol=1e-6)


def zeros_like(weights: FastWeights) -> FastWeights:
    return FastWeights(*(mx.zeros_like(w) for w in weights))


def to_numpy(weights) -> list[np.ndarray]:
    return [np.asarray(w, np.float64) for w in weights]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def network(gate, up, down, x) -> np.ndarray:
    """f(x) of one head, token by token, without the residual."""
    return np.stack([down @ (silu(gate @ row) * (up @ row)) for row in x])


def frobenius(x: mx.array) -> np.ndarray:
    return np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))


# Reading


@pytest.mark.parametrize("leading, tokens, p, h", SHAPES)
def test_read_is_a_residual_swiglu_network(leading, tokens, p, h):
    rng = np.random.default_rng(0)
    weights = random_weights(rng, leading, p, h)
    queries = mx.array(rng.normal(size=(*leading, tokens, p)), mx.float32)

    actual = fast_weights.read(weights, queries)

    expected = np.empty(queries.shape)
    matrices, x = to_numpy(weights), np.asarray(queries, np.float64)
    for head in np.ndindex(*leading):
        expected[head] = network(*(w[head] for w in matrices), x[head]) + x[head]
    assert actual.dtype == mx.float32
    assert_close("read", actual, expected, 1e-6)


def test_read_of_an_empty_memory_is_the_query():
    rng = np.random.default_rng(1)
    weights = random_weights(rng)
    queries = mx.array(rng.normal(size=(2, 3, 5, 8)), mx.float32)
    empty = weights._replace(down=mx.zeros_like(weights.down))
    assert mx.array_equal(fast_weights.read(empty, queries), queries)
    zeros = mx.zeros_like(queries)
    assert mx.array_equal(fast_weights.read(weights, zeros), zeros)


# The gradient


@pytest.mark.parametrize("leading, tokens, p, h", SHAPES)
@pytest.mark.parametrize("name", FastWeights._fields)
def test_gradient_is_that_of_autograd(name, leading, tokens, p, h):
    """Each matrix learns from the loss weighted by its own rate."""
    rng = np.random.default_rng(2)
    weights = random_weights(rng, leading, p, h)
    keys, values, rates = random_pairs(rng, leading, tokens, p)
    rate = rates[..., FastWeights._fields.index(name)]

    def loss(matrix: mx.array) -> mx.array:
        read = fast_weights.read(weights._replace(**{name: matrix}), keys)
        return -(rate * (read * values).sum(-1)).sum()

    actual = getattr(fast_weights.gradient(weights, keys, values, rates), name)
    assert_close(name, actual, mx.grad(loss)(getattr(weights, name)), 1e-5)


@pytest.mark.parametrize("name", FastWeights._fields)
def test_gradient_is_that_of_finite_differences(name):
    rng = np.random.default_rng(3)
    index = FastWeights._fields.index(name)
    tokens, p, h = 3, 4, 5
    weights = random_weights(rng, (), p, h)
    keys, values, rates = random_pairs(rng, (), tokens, p)
    matrices, k, v = to_numpy(weights), *to_numpy((keys, values))
    rate = np.asarray(rates, np.float64)[:, index]

    def loss() -> float:
        return -(rate * (network(*matrices, k) * v).sum(-1)).sum()

    step, matrix = 1e-5, matrices[index]
    expected = np.empty_like(matrix)
    for entry in np.ndindex(*matrix.shape):
        value = matrix[entry]
        matrix[entry] = value + step
        above = loss()
        matrix[entry] = value - step
        expected[entry] = (above - loss()) / (2 * step)
        matrix[entry] = value

    actual = fast_weights.gradient(weights, keys, values, rates)[index]
    assert_close(name, actual, expected, 1e-6)


@pytest.mark.parametrize("cuts", [[64], [1, 63], [7, 1, 40, 16], [1] * 64])
def test_gradient_of_a_chunk_is_the_sum_over_its_parts(cuts):
    """So that a chunk can be streamed: all gradients are taken at the same weights."""
    rng = np.random.default_rng(4)
    weights = random_weights(rng, p=16, h=32)
    pairs = random_pairs(rng, (2, 3), 64, 16)
    whole = fast_weights.gradient(weights, *pairs)
    total, start = zeros_like(weights), 0
    for size in cuts:
        part = (x[..., start : start + size, :] for x in pairs)
        grads = fast_weights.gradient(weights, *part)
        total = FastWeights(*(t + g for t, g in zip(total, grads, strict=True)))
        start += size
    for name in FastWeights._fields:
        assert_close(name, getattr(total, name), getattr(whole, name), 1e-6)


def test_a_token_with_rate_zero_teaches_nothing():
    rng = np.random.default_rng(5)
    weights = random_weights(rng)
    keys, values, rates = random_pairs(rng, (2, 3), 10, 8)
    rates[..., 4:, :] = 0
    kept = fast_weights.gradient(weights, keys, values, rates)
    short = fast_weights.gradient(
        weights, keys[..., :4, :], values[..., :4, :], rates[..., :4, :]
    )
    for name in FastWeights._fields:
        assert_close(name, getattr(kept, name), getattr(short, name), 1e-6)


# Normalisation, clip and write


def test_row_norms_are_over_the_input_dimension():
    weights = random_weights(np.random.default_rng(6), p=8, h=16)
    norms = fast_weights.row_norms(weights)
    assert [x.shape for x in norms] == [(2, 3, 16, 1), (2, 3, 16, 1), (2, 3, 8, 1)]
    for name, matrix, norm in zip(FastWeights._fields, weights, norms, strict=True):
        expected = np.linalg.norm(np.asarray(matrix, np.float64), axis=-1)
        assert_close(name, norm[..., 0], expected, 1e-6)


def normalize(weights: FastWeights, norms: Matrices) -> FastWeights:
    """U of W, by way of the scales that a state keeps."""
    scales = fast_weights.row_scales(weights, norms)
    return FastWeights(*fast_weights.normalize(weights, scales))


def test_normalize_divides_by_the_norm_plus_epsilon():
    rng = np.random.default_rng(7)
    weights, norms = random_weights(rng), random_weights(rng)
    norms = fast_weights.row_norms(norms)
    small = FastWeights(*(1e-4 * w for w in weights))  # so that epsilon matters
    actual = normalize(small, norms)
    for i, name in enumerate(FastWeights._fields):
        w, n = to_numpy((small[i], norms[i]))
        expected = w * n / (np.linalg.norm(w, axis=-1, keepdims=True) + EPS)
        assert_close(name, actual[i], expected, 1e-6)


def clip(grads: FastWeights, max_norm: float) -> FastWeights:
    """By the norms that the gradient has."""
    squares = fast_weights.squared_norms(grads)
    return FastWeights(*fast_weights.clip(grads, squares, max_norm))


def write(unified, momentum, grads, decay, max_norm) -> tuple[FastWeights, FastWeights]:
    squares = fast_weights.squared_norms(grads)
    new = fast_weights.write(unified, momentum, grads, squares, decay, max_norm)
    return FastWeights(*new[0]), FastWeights(*new[1])


def test_rows_keep_their_initial_norms_while_chunks_are_written():
    rng = np.random.default_rng(8)
    weights = random_weights(rng, p=16, h=32)
    norms = fast_weights.row_norms(weights)
    momentum = zeros_like(weights)
    for chunk in range(10):
        unified = normalize(weights, norms)
        lengths = fast_weights.row_norms(unified)
        for i, name in enumerate(FastWeights._fields):
            # The epsilon of 1e-5 shortens a row of norm 1 by as much.
            assert_close(f"{name} at chunk {chunk}", lengths[i], norms[i], 1.5e-5)
        grads = fast_weights.gradient(unified, *random_pairs(rng, (2, 3), 32, 16))
        decay = mx.array(rng.uniform(0, 1, (2, 3)), mx.float32)
        weights, momentum = write(unified, momentum, grads, decay, 3.0)
        # What is read is not normalised: the write moved the rows off their norms.
        written = fast_weights.row_norms(weights)
        assert relative_error(written[-1], norms[-1]) > 0.05


def test_normalizing_the_initial_weights_changes_nothing():
    weights = random_weights(np.random.default_rng(9), p=64, h=128)
    unified = normalize(weights, fast_weights.row_norms(weights))
    for name in FastWeights._fields:
        assert_close(name, getattr(unified, name), getattr(weights, name), 1e-4)


def test_clip_limits_each_matrix_of_each_head_of_each_row():
    """Half of the matrices are above Theta, in no particular order."""
    rng = np.random.default_rng(10)
    theta, batch, heads = 2.0, 4, 3
    targets = rng.permutation(np.linspace(0.1, 2, 3 * batch * heads) * theta)
    targets = targets.reshape(3, batch, heads)
    grads = random_weights(rng, (batch, heads))
    grads = FastWeights(
        *(
            g * mx.array(target / frobenius(g), mx.float32)[..., None, None]
            for g, target in zip(grads, targets, strict=True)
        )
    )
    clipped = clip(grads, theta)
    assert 10 < (targets > theta).sum() < 26
    for name, before, after, target in zip(
        FastWeights._fields, grads, clipped, targets, strict=True
    ):
        for b, n in np.ndindex(batch, heads):
            where = f"{name} of row {b}, head {n}"
            if target[b, n] <= theta:
                assert mx.array_equal(after[b, n], before[b, n]), where
            else:
                expected = np.asarray(before[b, n]) * (theta / target[b, n])
                assert_close(where, after[b, n], expected, 1e-6)
                assert_close(where, frobenius(after[b, n]), theta, 1e-6)


def test_squared_norms_are_of_each_matrix():
    grads = random_weights(np.random.default_rng(14), (2, 3))
    squares = fast_weights.squared_norms(grads)
    assert squares.shape == (2, 3, 3)
    for i, grad in enumerate(grads):
        assert_close(f"matrix {i}", squares[..., i], frobenius(grad) ** 2, 1e-6)


def test_clip_goes_by_the_squares_that_it_is_given():
    """Whoever sums G up may know them."""
    grads = random_weights(np.random.default_rng(15), (2, 3))
    squares = mx.array([4.0, 1.0, 100.0]) * mx.ones((2, 3, 1))
    clipped = fast_weights.clip(grads, squares, 2.0)
    for after, before, factor in zip(clipped, grads, (1, 1, 0.2), strict=True):
        assert_close("clipped", after, factor * before, 1e-6)


def test_clip_of_zero_is_zero_and_so_is_its_derivative():
    zero = zeros_like(random_weights(np.random.default_rng(11)))
    assert not mx.any(clip(zero, 3.0).gate)

    def total(gate: mx.array) -> mx.array:
        return clip(zero._replace(gate=gate), 3.0).gate.sum()

    assert mx.array_equal(mx.grad(total)(zero.gate), mx.ones_like(zero.gate))


def test_write_adds_the_decayed_momentum_minus_the_clipped_gradient():
    rng = np.random.default_rng(12)
    theta = 1.5
    unified, momentum, grads = (random_weights(rng) for _ in range(3))
    decay = mx.array(rng.uniform(0, 1, (2, 3)), mx.float32)

    weights, new_momentum = write(unified, momentum, grads, decay, theta)

    mu = np.asarray(decay, np.float64)[..., None, None]
    norms = [frobenius(g) for g in grads]
    assert all((norm > theta).all() for norm in norms)
    for i, name in enumerate(FastWeights._fields):
        u, m, g = to_numpy((unified[i], momentum[i], grads[i]))
        expected = mu * m - g * (theta / norms[i])[..., None, None]
        assert_close(f"M {name}", new_momentum[i], expected, 1e-6)
        assert_close(f"W {name}", weights[i], u + expected, 1e-6)


# The relation to LaCT


def silu_backprop(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    sigma = 1 / (1 + np.exp(-x))
    return dy * sigma * (1 + x * (1 - sigma))


def lact_post_norm(w0, w1, w2, norms, chunks):
    """LaCT's recurrence (arXiv 2505.23884) for one head, in its own names: momentum,
    no Muon, row norms restored after each update.

    Args:
        w0, w1, w2: gate ``[dh, dk]``, down ``[dv, dh]`` and up ``[dh, dk]``.
        norms: row norms of the initial w0, w1 and w2.
        chunks: of k ``[l, dk]``, v ``[l, dv]``, lr0, lr1, lr2 ``[l]`` and m ``[l]``.

    Yields:
        tuple: w0, w1 and w2 after each chunk.
    """
    dw0_prev = dw1_prev = dw2_prev = 0
    for k, v, lr0, lr1, lr2, m in chunks:
        ki, vi = k.T, v.T  # [dk, l], [dv, l]
        gate_before_act = w0 @ ki
        hidden_before_mul = w2 @ ki
        hidden = silu(gate_before_act) * hidden_before_mul
        dhidden = w1.T @ vi
        dhidden_before_mul = dhidden * silu(gate_before_act)
        dgate = dhidden * hidden_before_mul
        dgate_before_act = silu_backprop(dgate, gate_before_act)
        m_chunkmean = m.mean()
        dw1 = vi @ (hidden.T * lr1[:, None]) + m_chunkmean * dw1_prev
        dw0 = dgate_before_act @ (k * lr0[:, None]) + m_chunkmean * dw0_prev
        dw2 = dhidden_before_mul @ (k * lr2[:, None]) + m_chunkmean * dw2_prev
        dw0_prev, dw1_prev, dw2_prev = dw0, dw1, dw2
        w0, w1, w2 = (
            w / (np.linalg.norm(w, axis=1, keepdims=True) + 1e-5) * norm
            for w, norm in zip((w0 + dw0, w1 + dw1, w2 + dw2), norms, strict=True)
        )
        yield w0, w1, w2


def write_and_normalize(initial: FastWeights, chunks) -> list[FastWeights]:
    """U_0, and U_j after each chunk of keys, values, rates and decays."""
    norms = fast_weights.row_norms(initial)
    momentum = zeros_like(initial)
    unified = [normalize(initial, norms)]
    for keys, values, rates, decays in chunks:
        grads = fast_weights.gradient(unified[-1], keys, values, rates)
        weights, momentum = write(unified[-1], momentum, grads, decays.mean(-1), OFF)
        unified.append(normalize(weights, norms))
    return unified


@pytest.mark.parametrize("start, tolerance", [("W0", 5e-5), ("U0", 2e-6)])
def test_normalised_weights_are_those_of_lact(start, tolerance):
    """Spec 2.3: U_j of AllMem without a clip is LaCT's weight after chunk j.

    LaCT does not normalise before its first chunk; started from U_0 instead of W0,
    the epsilon of that one step does not show.
    """
    rng = np.random.default_rng(13)
    leading, tokens, p, h = (2, 3), 48, 16, 32
    initial = random_weights(rng, leading, p, h)
    chunks = [
        (
            *random_pairs(rng, leading, tokens, p),
            mx.array(rng.uniform(0, 1, (*leading, tokens)), mx.float32),
        )
        for _ in range(8)
    ]
    unified, *ours = map(to_numpy, write_and_normalize(initial, chunks))
    first = to_numpy(initial) if start == "W0" else unified
    norms = [np.linalg.norm(w, axis=-1, keepdims=True) for w in to_numpy(initial)]
    chunks = [to_numpy(chunk) for chunk in chunks]

    for head in np.ndindex(*leading):
        gate, up, down = (w[head] for w in first)
        gate_norm, up_norm, down_norm = (w[head] for w in norms)
        theirs = lact_post_norm(
            gate,
            down,
            up,
            (gate_norm, down_norm, up_norm),
            [
                (k[head], v[head], eta[:, 0], eta[:, 2], eta[:, 1], m[head])
                for k, v, rates, m in chunks
                for eta in [rates[head]]
            ],
        )
        for j, (matrices, (w0, w1, w2)) in enumerate(zip(ours, theirs, strict=True)):
            where = f"after chunk {j}, row and head {head}"
            gate, up, down = (w[head] for w in matrices)
            assert_close(f"gate {where}", gate, w0, tolerance)
            assert_close(f"down {where}", down, w1, tolerance)
            assert_close(f"up {where}", up, w2, tolerance)
    moved = relative_error(ours[-1][2], first[2])
    assert moved > 0.5, f"the weights moved by only {moved:.2f}"


@pytest.mark.parametrize("number", [1, 3])
def test_a_matrix_is_written_the_same_alone_and_among_others(number):
    """Down alone is the last of the three."""
    rng = np.random.default_rng(16)
    weights, momentum, grads, norms = (random_weights(rng) for _ in range(4))
    assert FastWeights(*norms).replaced(weights) == weights
    replaced = norms.replaced(weights[-number:])
    assert replaced == (*norms[: 3 - number], *weights[3 - number :])
    decay = mx.array(rng.uniform(0, 1, (2, 3)), mx.float32)
    norms = fast_weights.row_norms(norms)

    def written(number: int) -> list[mx.array]:
        w, m, g, n = (x[-number:] for x in (weights, momentum, grads, norms))
        squares = fast_weights.squared_norms(g)
        w, m = fast_weights.write(normalized(w, n), m, g, squares, decay, 3.0)
        return [w[-1], m[-1], fast_weights.row_scales(w, n)[-1], squares[..., -1]]

    def normalized(w, n):
        return fast_weights.normalize(w, fast_weights.row_scales(w, n))

    for one, other in zip(written(number), written(3), strict=True):
        assert mx.array_equal(one, other)


# A memory, not a dead weight


def read_back(weights: FastWeights, eta: float, theta: float) -> dict[str, float]:
    """Writes 16 chunks of 128 random unit keys and values into every head.

    Returns:
        dict: how often the network's output for a key is nearest to the value written
        with it, among the values of its chunk, at the end; mean over the heads. The
        residual, the key itself, is left out: it says nothing about what was stored.
    """
    rng = np.random.default_rng(14)
    heads, p, _ = weights.down.shape
    tokens = 128

    def random_units() -> mx.array:
        x = mx.array(rng.standard_normal((heads, tokens, p), np.float32))
        return x / mx.linalg.norm(x, axis=-1, keepdims=True)

    norms = fast_weights.row_norms(weights)
    momentum = zeros_like(weights)
    rates = mx.full((heads, tokens, 3), eta)
    chunks = [(random_units(), random_units()) for _ in range(16)]
    for keys, values in chunks:
        unified = normalize(weights, norms)
        grads = fast_weights.gradient(unified, keys, values, rates)
        decay = mx.full((heads,), 0.5)
        weights, momentum = write(unified, momentum, grads, decay, theta)
        mx.eval(weights, momentum)

    def found(keys: mx.array, values: mx.array) -> float:
        stored = fast_weights.read(weights, keys) - keys
        # Values have length 1, so the nearest has the largest dot product.
        nearest = mx.argmax(stored @ values.swapaxes(-1, -2), axis=-1)
        return (nearest == mx.arange(tokens)).mean().item()

    return {
        "last": found(*chunks[-1]),
        "three earlier": found(*chunks[-4]),
        "first": found(*chunks[0]),
    }


def test_a_fresh_memory_reads_back_what_was_written():
    """Spec 2.9, the row of the defaults: 0.42 | 0.62 | 0.01."""
    mx.random.seed(0)
    config = AllMemConfig(heads=64, head_dim=64, hidden_dim=128)
    memory = Memory(8, config)
    found = read_back(
        memory.initial_weights, config.learning_rate, config.max_update_norm
    )
    assert found["last"] >= 0.40, found
    assert found["three earlier"] >= 0.40, found
    assert found["first"] < 0.1, found


def test_a_memory_with_the_settings_of_lact_is_a_dead_weight():
    """Spec 2.9: W0 of 1/sqrt(p), rates of 1e-3: nothing above chance, 1 in 128."""
    rng = np.random.default_rng(15)
    weights = random_weights(rng, (16,), 64, 128)
    scaled = weights._replace(gate=weights.gate / 4, up=weights.up / 4)
    found = read_back(scaled, 1e-3, 1.0)
    assert max(found.values()) < 0.1, found
