"""Gradients through what was learned while reading, as distillation needs them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from helpers import TINY_BASE, assert_close, random_tokens, tiny_model
from mlx.utils import tree_flatten
from oracle import HybridAttention

from allmem_mlx.config import UPDATES


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("updates", UPDATES)
def test_through_the_chain_of_chunks(family, updates):
    """Five chunks and a tail: every parameter's gradient is the PyTorch oracle's."""
    model = tiny_model(family, updates=updates)
    layer = model.layers[0].self_attn
    rng = np.random.default_rng(0)
    shape = (2, 171, TINY_BASE["hidden_size"])
    u, weight = rng.normal(size=(2, *shape)).astype(np.float32)

    def loss(layer):
        cache, chunk = model.make_cache()[0], model.allmem.chunk
        parts = [
            layer(mx.array(u[:, start : start + chunk]), cache=cache)
            for start in range(0, shape[1], chunk)
        ]
        return (mx.concatenate(parts, axis=1) * mx.array(weight)).sum()

    _, grads = nn.value_and_grad(layer, loss)(layer)

    reference = HybridAttention(model.base_config, model.allmem)
    reference.load_arrays(
        {name: np.array(x) for name, x in tree_flatten(layer.parameters())}
    )
    out, _ = reference(torch.tensor(u, dtype=torch.float64))
    (out * torch.tensor(weight)).sum().backward()
    expected = {name: x.grad.numpy() for name, x in reference.named_parameters()}
    grads = dict(tree_flatten(grads))
    assert grads.keys() == expected.keys()
    for name, x in expected.items():
        assert_close(name, grads[name], x, 1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_first_step(family):
    """With alpha = 0 only alpha moves, and every gradient is a number: the key of the
    first token, which has no predecessor, is a zero vector."""
    model = tiny_model(family, trained=False)
    model.train()  # in inference a memory that is off is not computed
    tokens = random_tokens(2, 100)

    def loss(model):
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    _, grads = nn.value_and_grad(model, loss)(model)
    for name, grad in tree_flatten(grads):
        assert mx.isfinite(grad).all().item(), name
        if ".memory." in name:
            assert not mx.any(grad).item(), name
        if name.endswith(".alpha"):
            assert mx.any(grad).item(), name
