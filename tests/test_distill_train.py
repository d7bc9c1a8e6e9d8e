"""Distillation in PyTorch: texts, start, recipe, and runs that are continued."""

import json
import random

import mlx.core as mx
import pytest
import torch
from helpers import assert_close, assert_refused, relative_error, tiny_base_folder
from processes import run
from safetensors.torch import load_file, save_file
from test_distill_layer import CHUNK, random_tokens, tiny_hybrid
from transformers import AutoTokenizer

from allmem_mlx.distillation.documents import Answer, Document
from allmem_mlx.distillation.initial import COMMON, whitening
from allmem_mlx.distillation.recipe import Recipe, draw_batch, draw_document
from allmem_mlx.distillation.run import ENOUGH, Run
from allmem_mlx.distillation.sources import Collected, Texts
from allmem_mlx.distillation.torch.hybrid import State, View
from allmem_mlx.distillation.torch.loss import segment_losses
from allmem_mlx.distillation.torch.measure import initialize, measure
from allmem_mlx.distillation.torch.trainer import Settings, TorchTrainer
from allmem_mlx.errors import AllMemError, SettingError

BOOK = "\n\n".join(f"It was the best of {i} times, and the worst." for i in range(500))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    (root / "texts").mkdir()
    for name in ("training", "valid"):
        (root / "texts" / f"{name}.txt").write_text(BOOK)
    return tiny_base_folder(root / "base"), root / "texts"


def settings_of(folders, out, **settings) -> tuple[Settings, Recipe]:
    """The settings of a run of four steps on a tiny model."""
    base, texts = folders
    model = {
        "model": str(base),
        "out": str(out),
        "heads": 2,
        "head_dim": 16,
        "hidden_dim": 32,
        "dtype": "float32",
    }
    recipe = {
        "data": str(texts),
        "lengths": "640",
        "windows": "64",
        "sinks": "4",
        "segments": 2,
        "context": 64,
        "batch_size": 1,
        "iters": 4,
        "save_every": 2,
        "steps_per_eval": 4,
    }
    for name, value in settings.items():
        (model if name in Settings.__annotations__ else recipe)[name] = value
    return Settings(**model), Recipe(**recipe)


def started(folders, out, **settings) -> Run:
    return Run(TorchTrainer(*settings_of(folders, out, **settings)))


def parameters(run: Run) -> dict[str, torch.Tensor]:
    return run.trainer.parameters


@pytest.fixture
def texts(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    return Texts(sorted(folders[1].glob("training.txt")), tokenizer, seed=0), tokenizer


def test_a_passage_comes_again(texts):
    for seed in range(8):
        texts[0].random.seed(seed)
        tokens = texts[0].repeat(1000).tokens
        assert len(tokens) == 1000
        passages = [tuple(tokens[i : i + 30]) for i in range(971)]
        apart = [j - passages.index(x) for j, x in enumerate(passages)]
        assert max(apart) >= 125


def test_a_question_comes_after_its_fact(texts):
    texts, tokenizer = texts
    for distance in (100, 1500):
        document = texts.facts(2000, distance, count=8)
        assert len(document.tokens) == 2000 and len(document.answers) == 8
        for at, apart in document.answers:
            value = tokenizer.decode(document.tokens[at.start : at.stop]).strip()
            stated = at.start - apart
            assert value in tokenizer.decode(document.tokens[stated - 100 : stated])
            assert 64 <= apart
        farthest = max(apart for _, apart in document.answers)
        assert farthest > 1000 if distance == 1500 else farthest < 700


def test_a_document_is_read_in_segments():
    """Every position is scored once, but for answers, and every answer is."""
    answers = [
        Answer(range(7, 9), 5),
        Answer(range(15, 17), 9),
        Answer(range(16, 18), 1),
    ]
    scored = [range(2, 12), range(14, 40)]
    document = Document(list(range(100, 135)), answers, scored)
    segments = [document.segment(start, 8, 6) for start in range(0, 48, 8)]
    assert [x.tokens for x in segments[:2]] == [[*range(100, 108)], [*range(108, 116)]]
    assert [x.context for x in segments[:2]] == [[], [*range(102, 108)]]
    assert [len(x.tokens) for x in segments] == [8, 8, 8, 8, 3, 0]
    targets = [8 * i + at + 1 for i, x in enumerate(segments) for at in x.targets]
    answered = {7, 8, 15, 16, 17}
    expected = [i for i in range(2, 35) if i not in answered and i not in (12, 13)]
    assert targets == expected
    # Of the first two answers, a part lies in the next segment.
    assert [x.answers for x in segments[:3]] == [[], [], []]
    whole = document.whole()
    assert whole.answer_places == [7, 8, 15, 16, 16, 17]
    right = [True, True, True, False, True, True]
    assert whole.found(right) == [(5, True), (9, False), (1, True)]


def test_texts_of_all_kinds_are_equally_frequent(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    for kind, count in (("one", 1), ("two", 9)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            (tmp_path / kind / f"{i}.txt").write_text(f"{kind}\n\n" + f"{kind} " * 2000)
    texts = Texts(sorted(tmp_path.glob("*/*.txt")), tokenizer, seed=0)
    assert texts.kinds == ["one", "two"]
    words = [tokenizer.decode(texts.passage(50)).split()[1] for _ in range(100)]
    assert 30 < words.count("one") < 70
    assert "two" not in tokenizer.decode(texts.passage(5000, "one"))


def test_too_little_text(folders, tmp_path, texts):
    (tmp_path / "x.txt").write_text(BOOK[:300])
    with pytest.raises(AllMemError, match="too little text for 5000 tokens"):
        Texts([tmp_path / "x.txt"], texts[1], seed=0).passage(5000)
    assert len(texts[0].passage(100_000)) == 100_000  # of several parts


def test_whitening():
    torch.manual_seed(0)
    x = (
        torch.randn(1000, 24) @ torch.randn(24, 24) + 5
    )  # far from 0: a common direction
    x = x.numpy()
    A, _ = whitening(x.T @ x / len(x), 16)
    y = x @ A.T
    assert_close("moment", y.T @ y / len(y), torch.eye(16), 1e-3)
    A, inverse = whitening(x.T @ x / len(x), 24)
    assert_close("round trip", x @ A.T @ inverse.T, x, 1e-3)


def test_keys_are_apart_at_the_start_of_training():
    hybrid, tokens = tiny_hybrid(dtype=torch.float32), random_tokens(4, 256)
    with torch.no_grad():  # all inputs point mostly the same way, as in real models
        hybrid.model.model.embed_tokens.weight.add_(1.0)

    def mean_cosine() -> float:
        cosines = []
        for layer, stream in hybrid.residual_streams(tokens):
            u = layer.input_layernorm(stream)
            keys = layer.self_attn.memory.tokens(u)[0].keys[:, 1:]
            cosines.append((keys @ keys.mT).mean())
        return torch.stack(cosines).mean().item()

    with torch.no_grad():
        assert mean_cosine() > 0.5
        initialize(hybrid, *measure(hybrid, tokens), alpha=0.1, seed=0)
        assert mean_cosine() < COMMON**2 + 0.05


def test_alpha_moves_first_and_everything_after():
    hybrid = tiny_hybrid()
    with torch.no_grad():
        for layer in hybrid.layers():
            layer.alpha.zero_()
    tokens = random_tokens(1, 4 * CHUNK)[0].tolist()
    segment = Document(tokens, [Answer(range(50, 52), 9)]).whole()
    view = View(window=16, sinks=2, chunk=CHUNK, memory=True)
    for moves in (("alpha",), tuple(hybrid.parameters())):
        losses, _ = segment_losses(hybrid, [segment], view, State())
        (losses.text + losses.answers).backward()
        for name, x in hybrid.parameters().items():
            assert bool(x.grad.abs().max() > 0) == name.endswith(moves), name
            x.grad = None
        with torch.no_grad():
            for layer in hybrid.layers():
                layer.alpha.fill_(0.1)


def test_rates_rise_and_fall():
    recipe = Recipe("data", iters=100, warm_up=0.1, decay=0.2)
    scales = [recipe.schedule(step) for step in range(100)]
    assert scales[0] == 0.1 and scales[9:81] == [1.0] * 72
    assert scales[90] == 0.5 and 0 < scales[99] < 0.1


def test_documents_depend_on_seed_number_and_distance_alone(folders, tmp_path, texts):
    _, recipe = settings_of(folders, tmp_path, windows="32,64,96,128", facts=0.8)
    numbers = range(6)
    first = [draw_batch(recipe, texts[0], i, 300) for i in numbers]
    again = [draw_batch(recipe, texts[0], i, 300) for i in reversed(numbers)]
    assert first == again[::-1]
    assert len({batch.window for batch in first}) > 1
    assert first != [draw_batch(recipe, texts[0], i, 900) for i in numbers]


def test_questions_become_harder(folders, tmp_path):
    run = started(folders, tmp_path, distance=500, segments=2, promote=0.5)
    for asked, right, distance in (
        (ENOUGH - 1, ENOUGH - 1, 500),  # too few to tell
        (ENOUGH, ENOUGH // 2, 500),
        (ENOUGH, ENOUGH, 1000),
        (ENOUGH, ENOUGH, 1280),  # the length of a document
    ):
        run.asked, run.right = asked, right
        run._judge_distance()
        assert run.distance == distance


@pytest.mark.slow
def test_a_run_goes_on_exactly(folders, tmp_path):
    started(folders, tmp_path / "whole").train()
    started(folders, tmp_path / "parts")  # stopped before its first step
    part = started(folders, tmp_path / "parts")
    for _ in range(2):
        part.train_step()
    part.save()
    part.train_step()  # lost
    resumed = started(folders, tmp_path / "parts")
    assert resumed.step == 2
    resumed.train()
    files = [tmp_path / name / "memory.safetensors" for name in ("whole", "parts")]
    expected, actual = (load_file(file) for file in files)
    assert len(actual) == 2 * 11
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name
    assert any(x.abs().max() > 0 for n, x in actual.items() if n.endswith("alpha"))
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["allmem"]["hidden_dim"] == 32
    log = [json.loads(x) for x in (tmp_path / "whole/log.jsonl").open()]
    assert [x["step"] for x in log] == [0, 0, 1, 2, 3, 4, 4]
    assert {"memory", "never written", "of another document"} == set(log[-1]["judged"])


@pytest.mark.slow
def test_processes_share_a_batch(folders, tmp_path):
    settings = {
        "lengths": "192",
        "batch_size": 2,
        "iters": 2,
        "facts": 0.8,
    }
    started(folders, tmp_path / "one", **settings).train()
    model, recipe = settings_of(folders, tmp_path / "two", **settings)
    given = {**vars(model), **vars(recipe)}
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in given.items()
        if value and not isinstance(value, bool)
    ]
    launcher = ("torch.distributed.run", "--nproc-per-node", 2, "-m")
    result = run(*launcher, "allmem_mlx.distillation.torch", *flags)
    assert result.returncode == 0, result.stderr
    files = [tmp_path / name / "memory.safetensors" for name in ("one", "two")]
    one, two = map(load_file, files)
    for name, x in one.items():
        assert_close(name, two[name], x, 1e-5)


def test_what_was_trained_is_what_mlx_reads(folders, tmp_path):
    """From the folder that a run leaves, over many chunks."""
    from allmem_mlx import load
    from allmem_mlx.convert import convert

    trained = started(folders, tmp_path / "run")
    trained.train()
    hybrid = trained.trainer.hybrid
    convert(folders[0], tmp_path / "new", torch_path=tmp_path / "run")
    model, _ = load(tmp_path / "new")
    c = model.allmem
    assert (c.window, c.sinks, c.chunk, c.hidden_dim) == (64, 4, 64, 32)
    tokens = random_tokens(1, 300)
    views = [
        View(window=c.window, sinks=c.sinks, chunk=c.chunk, memory=memory)
        for memory in (True, False)
    ]
    with torch.no_grad():
        head = hybrid.model.get_output_embeddings()
        expected, without = (head(hybrid.hidden(tokens, view)) for view in views)
    actual = model(mx.array(tokens.numpy()))
    assert_close("logits", actual, expected, 1e-5)
    assert relative_error(actual, without) > 1e-3


def test_refusals(folders, tmp_path):
    flags = {"model": tmp_path, "data": folders[1], "out": tmp_path / "o"}
    given = [x for name, value in flags.items() for x in (f"--{name}", value)]
    result = run("allmem_mlx.distillation.torch", *given)
    assert_refused(result, 1, "not a model folder: it has no config.json")
    assert not (tmp_path / "o").exists()
    with pytest.raises(AllMemError, match="no text file"):
        started(folders, tmp_path / "o", data=str(tmp_path))


def test_a_checkpoint_that_does_not_fit(folders, tmp_path):
    started(folders, tmp_path).save()
    with pytest.raises(AllMemError, match="other settings"):
        started(folders, tmp_path, rate=5e-4)
    (tmp_path / "checkpoint.pt").write_bytes(b"garbage")
    with pytest.raises(AllMemError, match="checkpoint.pt is no checkpoint"):
        started(folders, tmp_path)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"windows": "64,x"}, "windows"),
        ({"chunks": ""}, "chunks"),
        ({"windows": "64,1280", "segments": 1}, "beyond a window"),
        ({"lengths": "1000"}, "multiple of every chunk, as of 64"),
        ({"repeats": 0.7, "facts": 0.7}, "shares"),
    ],
    ids=str,
)
def test_impossible_recipes(settings, word):
    with pytest.raises(SettingError, match=word):
        Recipe("data", **{"lengths": "1280", **settings})


def test_a_memory_wider_than_the_base():
    """Its keys are then of the whole input."""
    hybrid = tiny_hybrid(num_key_value_heads=1, dtype=torch.float32)
    initialize(hybrid, *measure(hybrid, random_tokens()), alpha=0.1, seed=0)
    assert all(torch.isfinite(x).all() for x in hybrid.parameters().values())


@pytest.mark.slow
def test_the_second_stage_trains_on_answers_of_the_student(folders, tmp_path):
    started(folders, tmp_path / "first", iters=2).train()
    memory = str(tmp_path / "first")
    second = started(folders, tmp_path / "second", memory=memory, stage2=2)
    trained = load_file(tmp_path / "first" / "memory.safetensors")
    assert all(torch.equal(x, trained[k]) for k, x in parameters(second).items())
    document = draw_batch(second.recipe, second.source, 0, 0).documents[0]
    assert document.scored
    at = document.scored[0]
    answer = second.trainer.answer(document.tokens[: at.start], len(at))
    assert document.tokens[at.start : at.stop] == answer
    second.train_step()


def test_the_second_stage_trains_on_nothing_else(folders, tmp_path, texts):
    document = Document(list(range(100)), scored=[range(90, 100)])
    source = Collected([document], tmp_path, texts[1], seed=0)
    _, recipe = settings_of(folders, tmp_path, repeats=0.5, facts=0.5, stage2=1)
    source.random = random.Random(0)
    for _ in range(8):
        drawn = draw_document(recipe, source, 180, 64)
        assert drawn.tokens == [*range(100), *range(80)]
        assert drawn.scored == [range(90, 100)]


@pytest.mark.slow
def test_layers_that_a_memory_does_not_have_start_anew(folders, tmp_path):
    first = started(folders, tmp_path / "first", iters=1, layers="-1")
    first.train()
    memory = str(tmp_path / "first")
    second = started(folders, tmp_path / "second", memory=memory, layers="0,-1")
    fresh = started(folders, tmp_path / "fresh", layers="0,1")
    trained, start = parameters(first), parameters(fresh)
    assert set(parameters(second)) == set(start) > set(trained)
    for name, x in parameters(second).items():
        assert torch.equal(x, trained.get(name, start[name])), name
    third = started(folders, tmp_path / "third", memory=memory)
    assert parameters(third).keys() == trained.keys()
    for layers, message in (("0", "layers.1.* not trained here"), ("a", "layers is")):
        with pytest.raises(AllMemError, match=message):
            started(folders, tmp_path / "fourth", memory=memory, layers=layers)
    file = tmp_path / "first" / "memory.safetensors"
    save_file({k: x for k, x in load_file(file).items() if "o_norm" not in k}, file)
    with pytest.raises(AllMemError, match="o_norm.* is missing"):
        started(folders, tmp_path / "fourth", memory=memory)


def test_other_families_are_refused():
    with pytest.raises(AllMemError, match="'gpt2' cannot be distilled"):
        tiny_hybrid("gpt2")
