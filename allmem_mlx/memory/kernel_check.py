"""Whether the kernels compute on this GPU what the reference does.

They were written without one at hand. So before a model uses them, they read a few
short chunks of its form, each beside its namesake in ``ops.py``.
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import reason
from . import fast_weights
from .fast_weights import FastWeights

# Parts of chunks, each folded at once: full and ragged tiles of every size, and a token
# alone; G not open, and open.
CHUNKS = ((170, 90), (37,), (1,))
BATCH, HEADS = 2, 2
# Of a norm. Where a GPU has an accelerator for products, as the M5 has, MLX's own in
# float32 are off by 1e-3 (``MLX_ENABLE_TF32``); so are sums rounded to 16 bits.
TOLERANCE = 1e-2


def fault(
    kernels: Any,
    reference: Any,
    p: int,
    h: int,
    taps: int,
    dtype: mx.Dtype,
    written: int,
) -> str:
    """The fault of the first kernel that fails or differs; ``""`` if none does.

    Args:
        kernels (Operations): what is tried.
        reference (Operations): the same operations as they should be.
        p (int): head width.
        h (int): hidden width.
        taps (int): of the convolution.
        dtype (mx.Dtype): type of the model's activations.
        written (int): matrices of a network that are written, the last ones.
    """

    def both(name: str, **arguments: Any) -> Any:
        """A kernel's result, once it is known to be right."""
        try:
            actual = getattr(kernels, name)(**arguments)
            mx.eval(actual)
        except Exception as error:
            raise _Fault(f"{name} fails: {reason(error)}") from error
        expected = getattr(reference, name)(**arguments)
        if not _same(_summed(name, actual), _summed(name, expected)):
            raise _Fault(f"{name} gives other numbers than it should")
        return actual

    try:
        _read_chunks(both, p, h, taps, dtype, written)
    except _Fault as error:
        return str(error)
    return ""


class _Fault(Exception):
    """Of a kernel."""


def _read_chunks(
    run: Any, p: int, h: int, taps: int, dtype: mx.Dtype, written: int
) -> None:
    """Lets ``run`` do what a memory does for a few chunks that it projects at once."""
    B, n, T = BATCH, HEADS, sum(map(sum, CHUNKS))
    keys = iter(mx.random.split(mx.random.key(0), 10))  # the user's numbers stay theirs

    def normal(*shape: int, scale: float = 1.0) -> mx.array:
        return mx.random.normal(shape, scale=scale, key=next(keys))

    shapes = ((h, p), 0.5), ((h, p), 0.5), ((p, h), h**-0.5)
    initial = FastWeights(*(normal(n, *shape, scale=x) for shape, x in shapes))
    weights = tuple(w + normal(B, *w.shape, scale=0.1) for w in initial[-written:])
    norms = fast_weights.row_norms(initial[-written:])
    scales = fast_weights.row_scales(weights, norms)
    momentum = tuple(mx.zeros(w.shape) for w in weights)
    queries, rows, gates, _ = run(
        "memory_inputs",
        projected=normal(B, T, 3 * n * p + 5 * n).astype(dtype),
        conv_state=normal(B, taps - 1, 3 * n * p).astype(dtype),
        conv_weight=normal(3 * n * p, taps).astype(dtype),
        rate_bias=normal(5 * n),
        q_norm=mx.ones(p, dtype),
        k_norm=mx.ones(p, dtype),
        learning_rate=0.1,
    )
    start = 0
    for chunk in CHUNKS:
        grads = decay_sum = None
        for tokens in chunk:
            part = slice(start, start + tokens)
            start += tokens
            run(
                "memory_read",
                weights=initial.replaced(weights),
                queries=queries[:, :, part],
                gates=gates[:, :, part],
                norm=mx.ones(p, dtype),
                eps=0.1,
                dtype=dtype,
            )
            grads, decay_sum, squares = run(
                "memory_fold",
                weights=initial.replaced(weights),
                scales=scales,
                grads=grads,
                decay_sum=decay_sum,
                rows=rows[:, :, part],
            )
        weights, scales, momentum = run(
            "memory_write",
            weights=weights,
            scales=scales,
            momentum=momentum,
            grads=grads,
            squares=squares,
            decay_sum=decay_sum,
            tokens=sum(chunk),
            norms=norms,
            max_norm=3.0,
        )


def _summed(name: str, result: Any) -> Any:
    """Sums of squares come in as many parts as suit who made them."""
    return (*result[:2], result[2].sum(-1)) if name == "memory_fold" else result


def _same(actual: Any, expected: Any) -> bool:
    """Arrays of the same numbers. NaN is the same as nothing."""
    pairs: Any = zip(tree_flatten(actual), tree_flatten(expected), strict=True)
    for (_, a), (_, e) in pairs:
        a, e = a.astype(mx.float32), e.astype(mx.float32)
        if not (mx.linalg.norm(a - e) <= TOLERANCE * mx.linalg.norm(e)).item():
            return False
    return True
