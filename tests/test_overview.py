"""What a model is said to be and need, against what it is and needs."""

import gc
import json
from dataclasses import replace

import mlx.core as mx
import pytest
import torch
from family_cases import CASES, save_checkpoint, settings
from helpers import (
    TINY_ALLMEM,
    TINY_BASE,
    activate_memory,
    active_folder,
    random_tokens,
    slow_beyond,
    tiny_model,
)
from processes import run
from test_published_folders import QUANTISED, quantised, save_base
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from wrapper_cases import WRAPPERS

from allmem_mlx.benchmarking import room
from allmem_mlx.benchmarking.costs import lazy_model
from allmem_mlx.benchmarking.flops import Sizes
from allmem_mlx.benchmarking.overview import (
    TRAINED,
    UNKNOWN,
    UNTRAINED,
    Overview,
    amount,
    memory_of,
)
from allmem_mlx.benchmarking.room import GIB, Machine
from allmem_mlx.convert import convert
from allmem_mlx.model import is_memory
from allmem_mlx.session import Session
from allmem_mlx.snapshots import CHUNKS, TURNS

SMALL = {**TINY_ALLMEM, "window": 24}
MAC = Machine.of(16 * GIB)
ATTENTION = "attention over window and sinks"


def config_of(name: str):
    """The configuration of a case as transformers has it."""
    family, config = settings(name)
    return AutoConfig.for_model(family, **config)


def overview_of(name: str, memory: str = UNTRAINED, **changed) -> Overview:
    config = {**config_of(name).to_dict(), **changed}
    return Overview.of(lazy_model(config, SMALL), memory, MAC)


def read(model, tokens: int):
    cache = model.make_cache()
    for i in range(tokens // 64):
        model(random_tokens(1, 64, seed=i), cache=cache)
        mx.eval([part.state for part in cache])
    return cache


@pytest.mark.parametrize("name", slow_beyond(6, CASES))
def test_weights_and_state_are_those_of_the_model(name):
    """Weights of transformers' own model, and the state of a reading; and nothing is
    evaluated to say so."""
    config = config_of(name)
    with torch.device("meta"):
        own = AutoModelForCausalLM.from_config(config)
    expected = 4 * sum(x.numel() for x in own.parameters())

    mx.clear_cache()
    before = mx.get_active_memory()
    model = lazy_model({**config.to_dict(), "torch_dtype": "float32"}, SMALL)
    overview = Overview.of(model, UNTRAINED, MAC)
    assert mx.get_active_memory() - before < 0.2 * expected
    assert overview.sizes.all_weights == pytest.approx(expected, rel=1e-3)
    assert sum(overview.layers.values()) == len(model.layers)
    assert overview.state == sum(layer.nbytes for layer in read(model, 192))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("qwen3", {ATTENTION: 2}),
        ("mistral, sliding", {ATTENTION: 2}),
        ("gemma3_text", {ATTENTION: 2, "sliding attention (24)": 4}),
        ("qwen3_next", {ATTENTION: 2, "gated DeltaNet": 2}),
        ("lfm2", {ATTENTION: 1, "convolution": 3}),
        ("falcon_h1", {f"{ATTENTION} beside Mamba-2": 2}),
        ("nemotron_h", {ATTENTION: 1, "Mamba-2": 1, "without a state": 2}),
        (
            "gemma4_text",
            {
                ATTENTION: 1,
                f"{ATTENTION} with another layer's keys": 1,
                "sliding attention (24)": 3,
                "sliding attention (24) with another layer's keys": 1,
            },
        ),
    ],
)
def test_layers_by_kind(name, layers):
    overview = overview_of(name)
    assert overview.layers == layers
    first, *rest = (f"{count} {kind}" for kind, count in overview.layers.items())
    assert next(overview.lines()).startswith(f"Layers: {first}")
    assert all(text in next(overview.lines()) for text in rest)


def line(overview: Overview, name: str) -> str:
    (found,) = (x for x in overview.lines() if x.startswith(f"{name}: "))
    return found.removeprefix(f"{name}: ")


ARCHIVE = "an archive (--archive)"


@pytest.mark.parametrize(
    ("name", "memory", "said"),
    [
        (
            "qwen3",
            UNTRAINED,
            f"none, as it is not trained; remembers through {ARCHIVE}",
        ),
        ("qwen3", TRAINED, f"trained, in 2 layers; remembers through it and {ARCHIVE}"),
        (
            "qwen3_5",
            TRAINED,
            "trained, in 2 layers; remembers through it, the gated DeltaNet layers and "
            + ARCHIVE,
        ),
        (
            "granitemoehybrid",
            UNTRAINED,
            "none, as it is not trained; remembers through the Mamba-2 layers and "
            + ARCHIVE,
        ),
        # Its convolutions see two tokens back.
        ("lfm2", UNTRAINED, f"none, as it is not trained; remembers through {ARCHIVE}"),
        (
            "lfm2",
            UNKNOWN,
            "in 1 layer; its weights say whether it is trained; remembers through "
            + ARCHIVE,
        ),
    ],
)
def test_what_a_model_remembers_through(name, memory, said):
    assert line(overview_of(name, memory), "Memory") == said


def test_a_memory_is_trained_if_any_alpha_is_not_0():
    assert memory_of(tiny_model(trained=False).eval()) == UNTRAINED
    assert memory_of(tiny_model()) == TRAINED


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss", "lfm2_moe"])
def test_experts(name):
    """A token needs two of four, and of the embedding a row."""
    overview = overview_of(name, torch_dtype="float32")
    sizes = overview.sizes
    experts = 4 * sum(
        x.numel()
        for name, x in meta_parameters(name)
        if ".experts." in name and "gate.weight" not in name
    )
    embedding = 4 * 128 * 64 * (name != "lfm2_moe")  # which is the head, too
    expected = experts / 2 + embedding
    assert sizes.all_weights - sizes.weights == pytest.approx(expected, rel=1e-3)
    uses = f"a token uses {amount(sizes.weights)} (2 of 4 experts)"
    assert uses in line(overview, "Weights")


def meta_parameters(name: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    return model.named_parameters()


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_packed_weights(tmp_path, mode):
    """Those of a folder, by its configuration alone. Its gates have 8 bits, where the
    others have 4, and some matrices are not a multiple of the group size wide."""
    base = save_checkpoint(tmp_path / "base", "qwen3_next")
    new = tmp_path / "new"
    convert(base, new, quantize=True, q_mode=mode, q_group_size=32)
    weights = mx.load(str(new / "model.safetensors"))
    config = json.loads((new / "config.json").read_text())
    packed = config["quantization"]
    assert mode == "mxfp4" or packed["model.layers.0.mlp.gate"]["bits"] == 8
    sizes = Sizes.of(lazy_model(config, {}))
    for which, found in (
        (is_memory, sizes.memory_weights),
        (lambda name: not is_memory(name), sizes.all_weights),
    ):
        expected = sum(x.nbytes for name, x in weights.items() if which(name))
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", slow_beyond(2, WRAPPERS))
def test_of_a_model_with_towers_the_language_model_counts(name):
    wrapper = WRAPPERS[name]
    config = AutoConfig.for_model(
        wrapper.kind,
        text_config=wrapper.text,
        vision_config=wrapper.vision,
        **wrapper.whole,
    )
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    parameters = dict(whole.named_parameters())
    kept = [x for x in parameters if "language_model." in x or x == "lm_head.weight"]
    if name in ("idefics3", "smolvlm"):
        kept = [x for x in parameters if "text_model." in x or x == "lm_head.weight"]
    expected = 4 * sum(parameters[x].numel() for x in kept)
    sizes = Sizes.of(lazy_model({**config.to_dict(), "dtype": "float32"}, SMALL))
    assert sizes.all_weights == pytest.approx(expected, rel=1e-3)


PUBLISHED = [
    ("gemma3_text", "mixed_4_6"),
    ("qwen3_moe", "mxfp4"),
    ("qwen3", "nvfp4"),
    ("qwen3_5_text", "mixed_4_6"),
    ("gpt_oss", "4 bits"),
]


@pytest.mark.parametrize("published", slow_beyond(1, PUBLISHED), ids=" ".join)
def test_a_folder_as_published(tmp_path, published):
    """By mlx-lm, some of them with the names of a model with towers."""
    family, how = published
    base = save_base(tmp_path / "base", family)
    folder = quantised(base, tmp_path / "quantised", **QUANTISED[how])
    weights = mx.load(str(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    expected = sum(x.nbytes for x in weights.values())
    sizes = Sizes.of(lazy_model(config, SMALL))
    assert sizes.all_weights == pytest.approx(expected, rel=1e-3)


class TestRoom:
    """The window that a machine has room for."""

    SIZES = Sizes.of(lazy_model({**config_of("qwen3").to_dict()}, {}))

    def largest(self, memory: int, limit: int | None = 1 << 20, trained=False):
        return room.largest(self.SIZES, limit, Machine.of(memory), trained)

    def peak(self, window: int, trained: bool = False) -> int:
        config = replace(self.SIZES.config, window=window)
        return room.peak(replace(self.SIZES, config=config), trained)

    @pytest.mark.parametrize("window", [512, 4096, 32768])
    def test_the_largest_power_of_two_that_fits(self, window):
        needed = -(-self.peak(window) * 3 // 2)
        assert self.largest(needed) == window
        assert self.largest(needed - 2) == (window // 2 if window > 512 else None)

    def test_a_memory_takes_room(self):
        assert self.peak(512, trained=True) > self.peak(512)

    def test_not_beyond_the_base(self):
        assert self.largest(1 << 40, 4095) == 2048
        assert self.largest(1 << 40, 4096) == 4096
        assert self.largest(1 << 40, 511) is None
        assert self.largest(1 << 40, None) is None

    @pytest.mark.parametrize(
        ("name", "limit"),
        [
            ("qwen3", 4096 - 128 - 512),
            ("mistral, sliding", 48),  # where all layers slide
            ("phi3, longrope", 320 - 512 - 128),  # another embedding beyond
        ],
    )
    def test_the_limit_of_a_base(self, name, limit):
        """No position that it was not trained for, no token further than it sees."""
        model = lazy_model(config_of(name).to_dict(), SMALL)
        c = model.allmem
        expected = min(limit + 640 - c.sinks - c.chunk, limit if limit == 48 else 4096)
        assert room.limit(model) == expected
        longest = expected + c.sinks + c.chunk
        assert longest <= model.base_config["max_position_embeddings"]

    def test_a_base_that_does_not_say_what_it_was_trained_for(self):
        model = lazy_model(config_of("qwen3").to_dict(), SMALL)
        del model.base_config["max_position_embeddings"]
        assert room.limit(model) is None
        assert line(Overview.of(model, UNTRAINED, MAC), "Window") == "24 and 4 sinks"

    def test_this_machine(self):
        here = Machine.this()
        assert here.here and 0 < here.usable < here.memory

    @pytest.mark.parametrize(("size", "usable"), [(24, 16), (32, 64 / 3), (64, 48)])
    def test_another_machine(self, size, usable):
        assert Machine.of(size * GIB) == (size * GIB, int(usable * GIB), False)

    def test_a_mac(self, monkeypatch):
        info = {"memory_size": 64 * GIB, "max_recommended_working_set_size": 48 * GIB}
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx, "device_info", lambda device: info)
        assert Machine.this() == (64 * GIB, 48 * GIB, True)
        assert str(Machine.this()) == "this machine's 64 GB"

    @pytest.mark.parametrize("trained", [False, True])
    def test_a_chat_takes_no_more(self, trained):
        """A session that can go back, after some turns and beyond a window; states are
        most of what it takes."""
        wide = {"head_dim": 64, "num_hidden_layers": 4, "num_key_value_heads": 4}
        config = {**TINY_BASE, **wide, "model_type": "qwen3", "dtype": "float32"}
        sizes = {"window": 1024, "sinks": 16, "chunk": 128}
        gc.collect()
        before = mx.get_active_memory()
        model = lazy_model(config, {**TINY_ALLMEM, **sizes})
        if trained:
            activate_memory(model)
        mx.eval(model.parameters())
        session = Session(model, None, snapshots=True)
        mx.reset_peak_memory()
        for turn in range(TURNS + CHUNKS):
            session.begin_turn()
            tokens = random_tokens(1, 640, seed=turn)[0].tolist()
            for _ in session.read([tokens]):
                pass
        bound = room.peak(Sizes.of(model), trained)
        found = mx.get_peak_memory() - before
        assert 0.8 * bound < found < bound


def test_amounts():
    assert [amount(x) for x in (0, 999, 12_345, 999_960, 52_300_000, 1.5e12)] == [
        "0 bytes",
        "999 bytes",
        "12.3 kB",
        "1.0 MB",
        "52.3 MB",
        "1,500.0 GB",
    ]


class TestWindowLine:
    """One sentence says what to do."""

    def said(self, window: int, memory: int, **changed) -> str:
        config = {**config_of("qwen3").to_dict(), **changed}
        model = lazy_model(config, {**TINY_ALLMEM, "window": window})
        machine = Machine.of(memory)
        return line(Overview.of(model, UNTRAINED, machine), "Window")

    def test_more_is_possible(self):
        said = self.said(512, 16 * GIB)
        words = "512 and 4 sinks; the base and a machine with 16 GB allow 2,048 "
        assert said == words + "(--window)"

    def test_as_much_as_possible(self):
        words = "2,048 and 4 sinks, as much as the base and a machine with 16 GB allow"
        assert self.said(2048, 16 * GIB) == words

    def test_too_much_for_the_base(self):
        said = self.said(4096, 16 * GIB)
        assert "too much for the base, which was trained for no position beyond" in said
        assert "beyond 4,096 (sinks + window + chunk)" in said

    def test_too_much_for_the_machine(self):
        config = config_of("qwen3").to_dict()
        model = lazy_model(config, {**TINY_ALLMEM, "window": 512})
        memory = -(-room.peak(Sizes.of(model), False) * 3 // 2)
        said = self.said(2048, memory)
        words = "2,048 and 4 sinks, too much for a machine with 0 GB; --window 512 fits"
        assert said == words

    def test_weights_that_do_not_fit(self):
        overview = overview_of("qwen3")
        usable = room.peak(overview.sizes, False) - 1
        small = replace(overview, machine=Machine(16 * GIB, usable))
        text = f"; more than the {amount(usable)} that a machine with 16 GB leaves a "
        text += "model: {}choose a smaller model"
        advice = text.format("quantise with -q, or ")
        assert line(small, "Weights").endswith(advice)
        assert line(small, "Window") == "24 and 4 sinks"
        for other in (
            replace(small, quantized=True),
            replace(small, machine=Machine(16 * GIB, usable // 2)),
        ):
            assert ": choose a smaller model" in line(other, "Weights")
        enough = replace(overview, machine=Machine(16 * GIB, usable + 1))
        assert "choose" not in line(enough, "Weights")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, and an AllMem model made of it, with an active memory."""
    folder = tmp_path_factory.mktemp("models")
    active_folder(folder)
    return folder


def printed(result) -> list[str]:
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().splitlines()


def test_what_convert_says(models, tmp_path):
    new = tmp_path / "a new model"
    source = ("--hf-path", models / "base", "--mlx-path", new)
    lines = printed(run("allmem_mlx.convert", *source, "--window", 256))
    size = sum(x.nbytes for x in mx.load(str(new / "model.safetensors")).values())
    assert lines[0] == f"Saved the model to {new}"
    assert lines[1] == f"Layers: 2 {ATTENTION}"
    assert lines[2].startswith(f"Weights: {amount(size)}, ")
    assert lines[3].startswith(f"State: {amount(2 * 2 * 2 * 16 * 4 * (256 + 128))} at")
    assert lines[3].endswith("; full attention adds 512 bytes a token")
    assert lines[4].startswith("Memory: none, as it is not trained")
    assert lines[5].startswith("Window: 256 and 128 sinks; the base and this machine")
    assert lines[6:] == [
        f"Go on with: allmem_mlx chat --model '{new}' (/read book.txt, then ask)"
    ]
    assert printed(run("allmem_mlx.cost", "--model", new))[:6] == lines[1:]
    said = printed(run("allmem_mlx.cost", "--model", models / "base", "--window", 256))
    assert said[:5] == lines[1:6]
    command = f"allmem_mlx convert --hf-path {models / 'base'} --window 256"
    assert said[5] == f"Go on with: {command} --mlx-path NEW_FOLDER"


def test_an_imported_memory(models, tmp_path):
    memory, new = tmp_path / "memory.safetensors", tmp_path / "new"
    trained = ("--model", models / "model")
    printed(run("allmem_mlx.convert", *trained, "--export-torch", memory))
    source = ("--hf-path", models / "base", "--mlx-path", new)
    lines = printed(run("allmem_mlx.convert", *source, "--torch-path", memory))
    said = "Memory: imported from memory.safetensors, in 2 layers; remembers through it"
    assert lines[4].startswith(said)
    assert " of it the memory's; " in lines[3]


def test_the_memory_of_a_folder_is_looked_at(models):
    lines = printed(run("allmem_mlx.cost", "--model", models / "model"))
    assert lines[3].startswith("Memory: trained, in 2 layers; ")
    config = models / "model" / "config.json"
    lines = printed(run("allmem_mlx.cost", "--model", config))
    assert lines[3].startswith("Memory: in 2 layers; its weights say whether ")
