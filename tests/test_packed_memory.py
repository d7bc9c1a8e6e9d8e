"""A trained memory as a small file."""

import mlx.core as mx
import pytest
from helpers import random_tokens, relative_error, tiny_base_folder
from mlx.utils import tree_flatten

from allmem_mlx import load
from allmem_mlx.convert import convert
from allmem_mlx.distillation.mlx import student
from allmem_mlx.distillation.mlx.measure import initialize, measure
from allmem_mlx.errors import AllMemError
from allmem_mlx.packed_memory import pack, unpack
from allmem_mlx.variants import base_model


def test_packing(tmp_path):
    """Fast weights come back as bfloat16, projections within 1/254 of the largest entry
    of their group, all else exactly; and the model is nearly the same."""
    base = tiny_base_folder(tmp_path / "base", initializer_range=0.2)
    form = {"head_dim": 16, "hidden_dim": 32, "updates": "down"}
    convert(base, tmp_path / "old", chunk=64, window=64, **form)
    model, _ = load(tmp_path / "old")
    texts = random_tokens(2, 200).tolist()
    initialize(model, *measure(model, base_model(model), texts), alpha=0.1, seed=0)
    student.make_trainable(model)
    memory = dict(tree_flatten(model.trainable_parameters()))
    file = tmp_path / "packed.safetensors"
    pack(memory, {**vars(model.allmem)}, file)
    assert file.stat().st_size < sum(x.nbytes for x in memory.values()) / 2

    (tmp_path / "unpacked").mkdir()
    unpack(file, tmp_path / "unpacked")
    convert(base, tmp_path / "new", torch_path=tmp_path / "unpacked")
    other, _ = load(tmp_path / "new")
    assert other.allmem == model.allmem
    found = dict(tree_flatten(other.parameters()))
    for name, x in memory.items():
        if name.endswith("proj.weight"):
            largest = mx.abs(x.reshape(len(x), -1, 32)).max(-1)
            error = mx.abs(found[name] - x).reshape(len(x), -1, 32).max(-1)
            assert (error <= largest / 250).all().item(), name
        elif ".w0_" in name:
            assert mx.array_equal(found[name], x.astype(mx.bfloat16)), name
        else:
            assert mx.array_equal(found[name], x), name
    model.eval()
    tokens = random_tokens(1, 300)
    assert relative_error(other(tokens), model(tokens)) < 0.02


def test_damaged(tmp_path):
    file = tmp_path / "packed.safetensors"
    for content in (b"", b"garbage"):
        file.write_bytes(content)
        with pytest.raises(AllMemError, match="is damaged"):
            unpack(file, tmp_path)
    mx.save_safetensors(str(file), {"x": mx.zeros(1)})
    with pytest.raises(AllMemError, match="is damaged"):
        unpack(file, tmp_path)
