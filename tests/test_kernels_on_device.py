"""The kernels on an Apple GPU, against the reference. Skipped elsewhere."""

import mlx.core as mx
import pytest
from helpers import assert_close, feed, random_tokens, tiny_model
from kernel_cases import CASES, NAMES, TOLERANCE, Inputs, arrays

from allmem_mlx import kernels, memory_ops

pytestmark = pytest.mark.skipif(
    not kernels.metal_has_simdgroups(),
    reason="needs an Apple GPU with simdgroup functions",
)


@pytest.fixture
def gpu():
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(mx.cpu)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_agrees_with_the_reference(gpu, name, case):
    arguments = Inputs(case).of(name)
    actual = arrays(getattr(kernels, name)(**arguments))
    with mx.stream(mx.cpu):
        expected = arrays(getattr(memory_ops, name)(**arguments))
        mx.eval(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        same = (x.astype(mx.float32) for x in (a, e))
        assert_close(f"array {i}", *same, TOLERANCE[e.dtype])


def test_a_model_agrees_with_itself_without_kernels(gpu, monkeypatch):
    model = tiny_model(heads=2, head_dim=64, hidden_dim=128, chunk=64, fold=32)
    config = model.allmem
    tokens = random_tokens(1, 230)
    assert kernels.operations(config, training=False) is kernels.METAL
    actual, cache = feed(model, tokens, [100, 64, 1, 1, 64])
    monkeypatch.setenv("ALLMEM_KERNELS", "0")
    assert kernels.operations(config, training=False) is kernels.REFERENCE
    expected, other = feed(model, tokens, [230])
    assert_close("logits", actual, expected, 1e-3)
    for i, (a, e) in enumerate(zip(cache[0][1].cache, other[0][1].cache, strict=True)):
        assert_close(f"array {i}", a, e, 1e-3)
