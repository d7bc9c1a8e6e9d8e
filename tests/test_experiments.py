"""The programs of examples/experiments, with tiny models."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from helpers import assert_refused, tiny_base_folder
from processes import ROOT, run
from safetensors.torch import load_file
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
        found[start] = float(first.split()[4])
    assert found["whitened"] > max(2 / 64, found["random"])


def test_retrieval_layers(tmp_path):
    base = tiny_base_folder(tmp_path / "base")
    (tmp_path / "book.txt").write_text(BOOK)
    flags = ["--model", base, "--length", 2048, "--documents", 1]
    result = program("retrieval_layers", *flags, tmp_path / "book.txt")
    assert result.returncode == 0, result.stderr
    _, every, none, first, _ = result.stdout.decode().splitlines()
    losses = [float(line.split(":")[1].split()[0]) for line in (every, none, first)]
    assert len(set(losses)) == 3


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name in ("a", "valid"):
        for kind in ("one", "two"):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{name}.txt").write_text(BOOK)
    return folder


@pytest.mark.slow
def test_a_run_is_carried_and_goes_on_exactly(tmp_path, texts):
    """From one folder alone, with the code in it; stopped in time, and at once."""
    base = tiny_base_folder(tmp_path / "base")
    form = ["--heads", 2, "--head-dim", 16, "--hidden-dim", 32, "--dtype", "float32"]
    recipe = ["--lengths", 192, "--segments", 2, "--windows", 64, "--batch-size", 2]
    recipe += ["--facts", 1, "--repeats", 0, "--save-every", 1]
    given = ["--model", base, "--data", texts]
    first = tmp_path / "first"
    trained = run(
        "allmem_mlx.distillation.torch",
        *(*given, "--out", first, *form, *recipe, "--iters", 1),
    )
    assert trained.returncode == 0, trained.stderr
    packed = tmp_path / "packed"
    flags = [packed, *given, "--tokens", 80_000, "--memory", first]
    result = program("carry", *flags)
    assert result.returncode == 0, result.stderr
    assert sorted(x.name for x in packed.iterdir()) == [
        *("allmem_mlx", "base", "data", "memory", "train")
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def train(out, *more):
        command = ["./train", "--out", out, *recipe, "--iters", 4, *more]
        done = subprocess.run(
            [*map(str, command)],
            cwd=packed,
            env={"PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    whole = train("whole")
    assert "Tokens/sec" in whole and "4 steps" in whole and "stopped" not in whole
    assert "Iter 2: stopped" in train("parts", "--minutes", 0)
    assert "Iter 3: Train" in train("parts", "--minutes", 0)
    one, two = (
        load_file(packed / x / "memory.safetensors") for x in ("whole", "parts")
    )
    for name, x in one.items():
        assert torch.equal(two[name], x), name


@pytest.mark.slow
def test_heads_are_made_to_last(tmp_path, texts):
    base = tiny_base_folder(tmp_path / "base")
    form = ["--heads", 3, "--head-dim", 8, "--hidden-dim", 32, "--values", "token"]
    recipe = ["--lengths", 192, "--segments", 2, "--windows", 64, "--iters", 1]
    given = ["--model", base, "--data", texts]
    trained = run(
        "allmem_mlx.distillation.torch",
        *(*given, "--out", tmp_path / "run", *form, *recipe),
    )
    assert trained.returncode == 0, trained.stderr
    flags = [tmp_path / "run", tmp_path / "new", *given, "--layers", -1]
    result = program("lasting", *flags)
    assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / x / "memory.safetensors") for x in ("run", "new"))
    changed = {name for name, x in one.items() if not torch.equal(x, two[name])}
    names = ("in_proj.weight", "rate_bias", "value_proj.weight")
    assert changed == {f"model.layers.1.self_attn.memory.{x}" for x in names}
    value = "model.layers.1.self_attn.memory.value_proj.weight"
    assert torch.equal(one[value][:16], two[value][:16])


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
