"""Distillation on MLX: recipe, start, loss and gradients are those of PyTorch."""

import json
import random

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from family_cases import CASES, save_checkpoint
from helpers import (
    TINY_ALLMEM,
    activate_memory,
    active_folder,
    assert_close,
    assert_refused,
    random_tokens,
    tiny_base_folder,
    tiny_model,
)
from mlx.utils import tree_flatten
from processes import run
from test_distill_layer import tiny_hybrid
from test_distill_train import BOOK

from allmem_mlx import load
from allmem_mlx.config import VALUES, AllMemConfig
from allmem_mlx.convert import convert
from allmem_mlx.distillation import planted
from allmem_mlx.distillation.documents import Answer, Document
from allmem_mlx.distillation.mlx import student
from allmem_mlx.distillation.mlx.measure import initialize, measure
from allmem_mlx.distillation.mlx.trainer import MLXTrainer, Settings
from allmem_mlx.distillation.recipe import Recipe, draw_batch
from allmem_mlx.distillation.run import Run
from allmem_mlx.distillation.sources import open_sources
from allmem_mlx.distillation.torch import measure as torch_measure
from allmem_mlx.distillation.torch.hybrid import State, View
from allmem_mlx.distillation.torch.loss import segment_losses as torch_losses
from allmem_mlx.errors import AllMemError
from allmem_mlx.evaluation import recall_tasks
from allmem_mlx.variants import base_model

WINDOW, SINKS, CHUNK = 48, 4, TINY_ALLMEM["chunk"]


def both(family: str, **allmem):
    """The same model and memory in PyTorch and in MLX."""
    config = AllMemConfig(**TINY_ALLMEM, **allmem)
    hybrid = tiny_hybrid(family, torch.float32, config)
    model = tiny_model(family, **allmem)
    weights = []
    for name, x in hybrid.model.state_dict().items():
        weights.append((name.replace(".self_attn.base.", ".self_attn."), x.numpy()))
    if "lm_head" not in model:
        weights = [(k, x) for k, x in weights if not k.startswith("lm_head")]
    model.load_weights([(k, mx.array(x)) for k, x in weights])
    return hybrid, model


class Losses:
    """The losses of segments of one document, one after the other, and gradients."""

    def __init__(self, model, grad_checkpoint=False):
        self.model, self.grad_checkpoint = model, grad_checkpoint
        self.base, self.state = base_model(model), model.make_cache()

    def __call__(self, segment, which=0):
        seen = mx.array([segment.context + segment.tokens])
        teacher = student.teacher_hidden(self.base, seen)[:, len(segment.context) :]
        after = []

        def losses(model):
            given = model, self.base, segment, teacher, self.state, after
            found = student.segment_losses(*given, self.grad_checkpoint)
            return found[which], found

        (_, found), grads = nn.value_and_grad(self.model, losses)(self.model)
        self.after = student.with_arrays(after, found[-1])
        return found, dict(tree_flatten(grads))

    def go_on(self):
        self.state = self.after


@pytest.mark.parametrize("grad_checkpoint", [False, True])
@pytest.mark.parametrize(
    "allmem",
    [{}, {"values": "token", "layers": [-1]}, {"updates": "down"}],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_losses_and_gradients_are_those_of_pytorch(family, allmem, grad_checkpoint):
    """Of text and of answers, at the start of a document and later in it."""
    hybrid, model = both(family, **allmem)
    tokens = np.asarray(random_tokens(1, 10 * CHUNK))[0].tolist()
    answers = [Answer(range(i, i + 3), 9) for i in (40, 5 * CHUNK + 30)]
    document = Document(tokens, answers)
    view, state = View(WINDOW, SINKS, CHUNK, memory=True), State()
    student.make_trainable(model)
    student.set_view(model, WINDOW, SINKS, CHUNK)
    actual = Losses(model, grad_checkpoint)
    for start in (0, 5 * CHUNK):
        segment = document.segment(start, 5 * CHUNK, 30)
        assert len(segment.answers) == 1
        expected, state = torch_losses(hybrid, [segment], view, state)
        for which, loss in enumerate((expected.text, expected.answers)):
            names = hybrid.parameters()
            gradient = torch.autograd.grad(
                loss, list(names.values()), retain_graph=True, materialize_grads=True
            )
            found, grads = actual(segment, which)
            assert_close("loss", found[which], loss.detach(), 1e-4)
            assert segment.found(found[2].tolist()) == expected.found
            assert grads.keys() == names.keys()
            for name, x in zip(names, gradient, strict=True):
                assert_close(name, grads[name], x, 1e-3)
        actual.go_on()


def test_only_a_response_is_scored():
    model = tiny_model()
    tokens = np.asarray(random_tokens(1, 200))[0].tolist()
    base = base_model(model)
    student.set_view(model, WINDOW, SINKS, CHUNK)
    teacher = student.teacher_hidden(base, mx.array([tokens]))

    def loss(scored):
        segment = Document(tokens, scored=scored).whole()
        return Losses(model)(segment)[0][0].item()

    hidden, _ = student.read_hidden(model, mx.array([tokens]), model.make_cache())
    each = [
        student.forward_kl(base, hidden[0, i : i + 1], teacher[0, i : i + 1]).item()
        for i in range(199)
    ]
    assert loss(None) == pytest.approx(np.mean(each), rel=1e-4)
    assert loss([range(150, 170)]) == pytest.approx(np.mean(each[149:169]), rel=1e-4)


@pytest.mark.parametrize("values", VALUES)
def test_the_start_is_that_of_pytorch(values):
    hybrid, model = both("llama", values=values)
    tokens = random_tokens(4, 256)
    measured = torch_measure.measure(hybrid, torch.tensor(np.asarray(tokens)))
    torch_measure.initialize(hybrid, *measured, alpha=0.1, seed=1)
    measured = measure(model, base_model(model), np.asarray(tokens).tolist())
    initialize(model, *measured, alpha=0.1, seed=1)
    actual = dict(tree_flatten(model.parameters()))
    for name, x in hybrid.parameters().items():
        assert actual[name].shape == x.shape
        if name.endswith("proj.weight"):  # eigenvectors have no sign
            actual[name], x = mx.abs(actual[name]), x.abs()
        assert_close(name, actual[name], x.detach(), 1e-3)


@pytest.mark.parametrize("name", ["qwen3_5", "granitemoehybrid", "gemma4_text"])
def test_a_block_can_be_read_again(name, tmp_path):
    """``grad_checkpoint`` changes no gradient, also where a layer has a state of its
    own or borrows keys."""
    save_checkpoint(tmp_path / "base", name)
    convert(tmp_path / "base", tmp_path / "new", chunk=64, heads=2, head_dim=16)
    model, _ = load(tmp_path / "new")
    activate_memory(model)
    segment = Document(np.asarray(random_tokens(1, 160))[0].tolist()).whole()
    student.make_trainable(model)
    student.set_view(model, 32, 4, 32)
    found = [Losses(model, again)(segment) for again in (False, True)]
    assert_close("loss", found[1][0][0], found[0][0][0], 1e-5)
    for key, x in found[0][1].items():
        assert_close(key, found[1][1][key], x, 1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_every_family_can_start(name, tmp_path):
    save_checkpoint(tmp_path / "base", name)
    convert(tmp_path / "base", tmp_path / "new", chunk=64, heads=2, head_dim=16)
    model, _ = load(tmp_path / "new")
    base = base_model(model)
    texts = np.asarray(random_tokens(2, 160)).tolist()
    kind = model.base_config["model_type"]
    if kind in ("gemma3n_text", "nemotron_h"):
        with pytest.raises(AllMemError, match=f"{kind} cannot be distilled"):
            student.make_trainable(model)
        return
    if kind in ("phi", "phi3") or name.endswith("keys as values"):
        with pytest.raises(AllMemError, match="_proj, which this family"):
            measure(model, base, texts)
        return
    initialize(model, *measure(model, base, texts), alpha=0.1, seed=0)
    student.make_trainable(model)
    tokens = mx.array(texts[:1])
    student.set_view(model, min(32, model.allmem.window), 4, 64)
    logits = student.logits_of(base, student.teacher_hidden(base, tokens))
    assert_close("logits", logits, base(tokens), 1e-5)
    found, grads = Losses(model)(Document(texts[0]).whole())
    assert found[0].item() > 0
    for key, x in grads.items():
        assert mx.isfinite(x).all().item(), key


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mlx")
    base = tiny_base_folder(root / "base", "llama", initializer_range=0.2)
    settings = {"head_dim": 16, "hidden_dim": 32, "chunk": 64}
    convert(base, root / "model", window=64, sinks=4, **settings)
    (root / "data").mkdir()
    for name in ("train", "valid"):
        (root / "data" / f"{name}.txt").write_text(BOOK)
    return root / "model", root / "data"


def settings_of(folders, out, **settings) -> dict:
    model, data = folders
    return {
        "model": str(model),
        "data": str(data),
        "adapter_path": str(out),
        "lengths": "320",
        "windows": "64",
        "sinks": "4",
        "segments": 2,
        "context": 64,
        "batch_size": 2,
        "iters": 20,
        "save_every": 10,
        "steps_per_eval": 20,
        "facts": 0,
        **settings,
    }


def flags(folders, out, **settings) -> list[str]:
    return [
        x
        for name, value in settings_of(folders, out, **settings).items()
        for x in (f"--{name.replace('_', '-')}", str(value))
    ]


def started(folders, out, **settings) -> Run:
    given = settings_of(folders, out, **settings)
    model = {name: given.pop(name) for name in ("model", "adapter_path")}
    return Run(MLXTrainer(Settings(**model), Recipe(**given)))


def trainable(run: Run) -> dict[str, mx.array]:
    return run.trainer.parameters()


def log_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").open()]


@pytest.mark.slow
def test_the_loss_falls_and_the_result_is_an_adapter(folders, tmp_path):
    out = tmp_path / "adapters"
    rates = {"rate": 0.03, "alpha_rate": 0.02, "gate_rate": 0.02}
    result = run("allmem_mlx.distill", *flags(folders, out, **rates))
    assert result.returncode == 0, result.stderr
    assert b"Val NLL beyond the window: full attention" in result.stdout
    losses = [entry["loss"] for entry in log_of(out) if "loss" in entry]
    assert len(losses) == 20
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])

    # mlx-lm's own adapters: its loader reads them, and its fuse makes a model folder.
    model, tokenizer = load(folders[0], adapter_path=str(out))
    assert {"AllMem", "never written", "another document"} < set(
        log_of(out)[-1]["judged"]
    )
    fused = run(
        "mlx_lm.fuse",
        *("--model", str(folders[0]), "--adapter-path", str(out)),
        *("--save-path", str(tmp_path / "fused"), "--trust-remote-code"),
    )
    assert fused.returncode == 0, fused.stderr
    tokens = random_tokens(1, 200)
    assert mx.array_equal(load(tmp_path / "fused")[0](tokens), model(tokens))


@pytest.mark.slow
def test_a_run_goes_on_exactly(folders, tmp_path):
    whole = started(folders, tmp_path / "whole", iters=4)
    for _ in range(4):
        whole.train_step()
    part = started(folders, tmp_path / "part", iters=4)
    for _ in range(2):
        part.train_step()
    part.save()
    part.train_step()  # lost
    resumed = started(folders, tmp_path / "part", iters=4)
    assert resumed.step == 2
    for _ in range(2):
        resumed.train_step()
    expected = trainable(whole)
    for name, x in trainable(resumed).items():
        assert mx.array_equal(x, expected[name]), name


def test_conversations(folders, tmp_path):
    """mlx-lm's own data: the response is scored, and is what the second stage asks
    for."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": BOOK[i : i + 150]},
                {"role": "assistant", "content": BOOK[i + 150 : i + 250]},
            ]
        }
        for i in range(20)
    ]
    for name in ("train", "valid"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    tokenizer = load(folders[0])[1]
    source, _ = open_sources(str(tmp_path), "", "valid", tokenizer, seed=0)
    document = source.natural(5000)
    assert len(document.tokens) == 5000 and len(document.scored) > 3
    responses = [row["messages"][1]["content"] for row in rows]
    for at in document.scored[:-1]:
        response = tokenizer.decode(document.tokens[at.start : at.stop])
        assert any(x in response for x in responses)
    with pytest.raises(AllMemError, match="nothing to score in 20 tokens"):
        source.natural(20)

    out = tmp_path / "out"
    settings = {"data": tmp_path, "stage2": 2, "iters": 1, "lengths": 640, "repeats": 0}
    result = run("allmem_mlx.distill", *flags(folders, out, **settings))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (out / "answers.jsonl").open()]
    assert len(lines) == 2
    model, _ = load(folders[0])
    for tokens, first in lines:
        assert tokenizer.decode(tokens[:first]).rstrip().endswith("assistant")
        assert 0 < len(tokens) - first <= 65


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "not a data set of mlx-lm"),
        ("no json", "not a data set of mlx-lm"),
        ('{"x": 1}\n', "not a data set of mlx-lm"),
        ('{"text": 1}\n', "example 1 is not like the first: text"),
    ],
    ids=["empty", "no json", "other keys", "no text"],
)
def test_data_that_is_none(folders, tmp_path, content, words):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(content)
    with pytest.raises(AllMemError, match=words):
        open_sources(str(tmp_path), "", "valid", load(folders[0])[1], seed=0)


def test_refusals(folders, tmp_path):
    def refused(**settings):
        return run("allmem_mlx.distill", *flags(folders, tmp_path / "x", **settings))

    assert_refused(refused(data=tmp_path), 1, "no text file")
    assert_refused(refused(windows="64,z"), 2, "windows")
    assert_refused(refused(iters=0), 2, "iters must be at least 1")
    (tmp_path / "x").mkdir(exist_ok=True)
    (tmp_path / "x" / "checkpoint.safetensors").write_bytes(b"garbage")
    assert_refused(refused(), 1, "checkpoint.safetensors")


def test_a_trained_memory_is_trained_on(tmp_path):
    folder = active_folder(tmp_path, chunk=64)
    before, _ = load(folder)
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "data" / f"{name}.txt").write_text(BOOK)
    settings = {
        "chunks": str(before.allmem.chunk),
        "windows": str(before.allmem.window),
    }
    fresh = started((folder, tmp_path / "data"), tmp_path / "out", **settings)
    expected = dict(tree_flatten(before.parameters()))
    for name, x in trainable(fresh).items():
        assert mx.array_equal(x, expected[name]), name


def test_what_is_planted_is_not_what_is_evaluated():
    drawn = planted.draw_facts(500, random.Random(0))
    assert len({fact.phrase for fact in drawn}) == 500
    words = {word.strip(".") for fact in drawn for word in fact.statement.split()}
    asked = {*recall_tasks.NAMES, *recall_tasks.PLACES}
    assert not words & asked
    assert not words & {"glassblower", "locker", "lantern"}
    held = {phrase for phrase, _ in planted.HELD_OUT}
    assert not held & {phrase for phrase, _ in planted.PHRASES}


def test_a_step_is_the_same_for_both(folders, tmp_path):
    from transformers import AutoTokenizer

    recipe = Recipe(str(folders[1]), lengths="1024", windows="64", segments=2)
    batches = []
    for tokenizer in (load(folders[0])[1], AutoTokenizer.from_pretrained(folders[0])):
        source, _ = open_sources(recipe.data, "", "valid", tokenizer, recipe.seed)
        batches.append(draw_batch(recipe, source, 3, 900))
    assert batches[0] == batches[1]
    assert any(document.answers for document in batches[0].documents)
