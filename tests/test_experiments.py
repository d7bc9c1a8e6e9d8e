"""The programs of examples/experiments, with tiny models."""

import sys
from dataclasses import replace

import mlx.core as mx
import pytest
import torch
from helpers import assert_refused, tiny_base_folder
from processes import ROOT, run
from test_distill_layer import random_tokens
from test_server import talking_folder

from allmem_mlx import load

FOLDER = ROOT / "examples" / "experiments"
sys.path.insert(0, str(FOLDER))

import mqar  # noqa: E402
from neural_cache import recalled  # noqa: E402

BOOK = "\n\n".join(f"It was the best of {i} times, and the worst." for i in range(500))


def program(name, *flags):
    return run(f"examples/experiments/{name}.py", *flags)


def test_readback(tmp_path):
    base = tiny_base_folder(tmp_path / "base")
    (tmp_path / "book.txt").write_text(BOOK)
    sizes = ["--heads", 2, "--head-dim", 16, "--hidden-dim", 64, "--length", 1024]
    found = {}
    for start in ("random", "whitened"):
        flags = ["--model", base, "--start", start, "--learning-rate", 0.2, *sizes]
        result = program("readback", *flags, tmp_path / "book.txt")
        assert result.returncode == 0, result.stderr
        _, _, first, *_ = result.stdout.decode().splitlines()
        found[start] = float(first.split()[-1])
    assert found["whitened"] > max(2 / 64, found["random"])


@pytest.mark.slow
def test_a_tiny_model_learns_to_recall():
    hybrid = mqar.train("matched", pairs=8, steps=40, batch=16, seed=0)
    never = replace(mqar.VIEW, write=False)
    assert mqar.recall(hybrid, 8, mqar.VIEW) > 0.9
    assert mqar.recall(hybrid, 8, never) < 0.1


def test_neural_cache():
    """A state that comes again predicts the token that followed it, once its chunk is
    complete."""
    keys = torch.eye(64).repeat(3, 1)
    targets = torch.arange(64).repeat(3)
    found = recalled(keys, keys, targets, targets, theta=40.0)
    assert (found[:64] == 0).all()
    assert (found[64:127] > 0.99).all() and (found[128:] > 0.99).all()
    assert found[127] < 0.02  # that token is in the open chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talking_folder(tmp_path_factory.mktemp("model"))


def test_shallow_model(folder, tmp_path):
    result = program("shallow_model", tmp_path / "a", "--model", folder, "--layers", 1)
    assert result.returncode == 0, result.stderr
    model, _ = load(tmp_path / "a")
    whole, _ = load(folder)
    assert len(model.layers) == 1
    whole.model.layers = whole.model.layers[-1:]
    whole.base_config["num_hidden_layers"] = 1
    tokens = mx.array(random_tokens(1, 400).numpy())
    assert mx.array_equal(model(tokens), whole(tokens))
    result = program("shallow_model", tmp_path / "b", "--model", folder, "--layers", 9)
    assert_refused(result, 2, "--layers must be 1 to 2")
