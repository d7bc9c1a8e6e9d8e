"""The kernels on an Apple GPU, against the reference. Skipped elsewhere."""

import os

import mlx.core as mx
import pytest
from helpers import assert_close, feed, random_tokens, state_arrays, tiny_model
from kernel_cases import (
    CASES,
    EXTREMES,
    LAYOUTS,
    NAMES,
    Case,
    Inputs,
    computed,
    differences,
    reference,
)

from allmem_mlx.memory import kernel_check, kernels

# The reference's products in float32, also where a GPU has faster ones.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

pytestmark = pytest.mark.skipif(
    not kernels.metal_has_simdgroups(),
    reason="needs an Apple GPU with simdgroup functions",
)


@pytest.fixture
def gpu():
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(mx.cpu)


def assert_right(name: str, arguments: dict) -> None:
    actual = computed(name, arguments)
    mx.eval(actual)
    with mx.stream(mx.cpu):
        expected = reference(name, arguments)
    assert differences(name, actual, expected) == []


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_agrees_with_the_reference(gpu, name, case):
    assert_right(name, Inputs(case).of(name))


@pytest.mark.parametrize("name, change", LAYOUTS)
def test_inputs_that_are_not_contiguous(gpu, name, change):
    assert_right(name, change(Inputs(Case(3, 2, 32, 64, 11)).of(name)))


@pytest.mark.parametrize(
    "name, extreme", [(name, extreme) for name in NAMES for extreme in EXTREMES[name]]
)
def test_extreme_inputs(gpu, name, extreme):
    arguments = Inputs(Case(2, 2, 32, 64, 11)).of(name)
    assert_right(name, EXTREMES[name][extreme](arguments))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("p, h", [(64, 128), (128, 512)])
def test_the_self_check_passes(gpu, p, h, dtype):
    sizes = p, h, 4, dtype
    assert kernel_check.fault(kernels.METAL, kernels.REFERENCE, *sizes) == ""


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
    actual, expected = (state_arrays(x[0][1:]) for x in (cache, other))
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert_close(name, actual[name], x, 1e-3)
