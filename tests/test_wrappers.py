"""Models with towers beside the language model, which alone is converted: against the
whole in transformers, which is given text."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from family_cases import save_checkpoint
from helpers import (
    assert_close,
    change_config,
    change_weights,
    feed,
    random_tokens,
    read_config,
    slow_beyond,
    transformers_logits,
    transformers_model,
)
from processes import ROOT
from wrapper_cases import MROPE, WRAPPERS, save_gemma3n, save_wrapper

from allmem_mlx import families, load
from allmem_mlx.convert import convert
from allmem_mlx.convert.base_config import SHARED, carry_over, language_model
from allmem_mlx.convert.published import (
    language_model_quantization,
    language_model_weights,
)
from allmem_mlx.errors import AllMemError

SIZES = {"window": 224, "sinks": 4, "chunk": 64}
CUTS = [70, 1, 1, 128]
LENGTH = sum(CUTS)


class Case:
    """A checkpoint, its class in transformers, and what that computes."""

    def __init__(self, name: str, folder: Path):
        wrapper = WRAPPERS[name]
        self.name, self.folder = name, folder
        self.kind = save_wrapper(folder, wrapper)
        self.tokens = random_tokens(1, LENGTH, vocab=90)  # without those of images

    def expected(self, folder: Path | None = None):
        model = transformers_model(folder or self.folder, self.kind)
        if self.name == "llama4":  # its own forward fails without images
            model = model.language_model
        return transformers_logits(model, self.tokens)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """``cases(name)``: each made once."""
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp("case") / "base")
        return made[name]

    return get


def assert_same_as_transformers(case: Case, source: Path, new: Path) -> None:
    convert(source, new, **SIZES)
    model, _ = load(new)
    actual, _ = feed(model, case.tokens, CUTS)
    assert_close("logits", actual, case.expected(source), 1e-5)


@pytest.mark.parametrize("name", slow_beyond(8, WRAPPERS))
def test_the_logits_are_those_of_transformers(cases, tmp_path, name, capsys):
    """And towers are named in one line, and gone."""
    case = cases(name)
    capsys.readouterr()
    convert(case.folder, tmp_path / "new", **SIZES)
    lines = [x for x in capsys.readouterr().err.splitlines() if "WARNING" in x]
    assert len(lines) == 1 and "left out of the weights: " in lines[0]
    model, tokenizer = load(tmp_path / "new")
    assert tokenizer.eos_token_ids == {126}
    actual, _ = feed(model, case.tokens, CUTS)
    assert_close("logits", actual, case.expected(), 1e-5)
    config = read_config(tmp_path / "new")
    assert not {"text_config", "vision_config", "image_token_id"} & config.keys()


def test_gemma_3n(tmp_path, capsys):
    text = save_checkpoint(tmp_path / "text", "gemma3n_text")
    save_gemma3n(tmp_path / "base", text)
    convert(tmp_path / "base", tmp_path / "new", **SIZES)
    assert "vision_tower" in capsys.readouterr().err
    tokens = random_tokens(1, LENGTH)
    actual, _ = feed(load(tmp_path / "new")[0], tokens, CUTS)
    expected = transformers_logits(transformers_model(text), tokens)
    assert_close("logits", actual, expected, 1e-5)


def test_every_wrapper_has_a_case_and_is_in_the_docs():
    tried = {wrapper.kind for wrapper in WRAPPERS.values()} | {"gemma3n"}
    assert families.WRAPPERS == tried
    text = (ROOT / "docs" / "conversion.md").read_text()
    assert all(f"`{kind}`" in text for kind in tried)


@pytest.fixture
def copy(cases, tmp_path):
    def get(name: str) -> Path:
        return shutil.copytree(cases(name).folder, tmp_path / "copy")

    return get


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_settings_side_by_side(cases, copy, tmp_path, name):
    """As Qwen2-VL is on the hub: without a ``text_config``, in old spellings."""
    folder = copy(name)
    config = read_config(folder)
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    assert_same_as_transformers(cases(name), folder, tmp_path / "new")


def test_three_positions_scaled(cases, copy, tmp_path):
    """The rotary embedding of Qwen2-VL, stretched as Qwen advises."""
    folder = copy("qwen2_vl")
    text = read_config(folder)["text_config"]
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    text["rope_parameters"] = MROPE | yarn
    change_config(folder, text_config=text)
    assert_same_as_transformers(cases("qwen2_vl"), folder, tmp_path / "new")


def test_experts_as_qwen_published_them(cases, copy, tmp_path):
    """Their matrices are transposed."""
    folder = copy("qwen3_vl_moe")

    def transpose(weights):
        for name, x in weights.items():
            if ".experts." in name:
                weights[name] = mx.contiguous(x.swapaxes(-1, -2))

    change_weights(folder, transpose)
    assert_same_as_transformers(cases("qwen3_vl_moe"), folder, tmp_path / "new")


class TestTiedHead:
    """A configuration need not say whether the head is the embedding."""

    def unstated(self, folder: Path) -> Path:
        config = read_config(folder)
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_a_head_of_its_own(self, cases, copy, tmp_path):
        """As Mistral Small 3.1 is on the hub, though transformers' default is tied."""
        folder = self.unstated(copy("mistral3"))
        assert_same_as_transformers(cases("mistral3"), folder, tmp_path / "new")
        assert not read_config(tmp_path / "new")["tie_word_embeddings"]

    @pytest.mark.parametrize("copied", [True, False])
    def test_none(self, cases, copy, tmp_path, copied):
        folder = self.unstated(copy("mistral3"))

        def change(weights):
            head, embedding = "language_model.lm_head.weight", "model.embed_tokens"
            weights.pop(head)
            if copied:
                weights[head] = weights[f"language_model.{embedding}.weight"]

        change_weights(folder, change)
        assert_same_as_transformers(cases("mistral3"), folder, tmp_path / "new")
        assert read_config(tmp_path / "new")["tie_word_embeddings"]

    def test_stated_otherwise(self, copy, tmp_path):
        """The weights have another head than the configuration says."""
        folder = copy("mistral3")
        change_config(folder, tie_word_embeddings=True)
        with pytest.raises(AllMemError, match="differs from the embedding"):
            convert(folder, tmp_path / "new", **SIZES)


def inner(kind: str, **text: Any) -> dict[str, Any]:
    """A configuration with the settings of its language model."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    return {"model_type": kind, "text_config": {**sizes, **text}}


class TestSettings:
    def test_defaults_are_those_of_the_whole(self):
        """Which are not those of the family, or of the model file."""
        assert carry_over(language_model(inner("mistral3")))["rope_theta"] == 1e4
        assert carry_over(language_model(inner("qwen2_vl")))["rope_theta"] == 1e6
        assert carry_over(language_model(inner("qwen3_vl")))["rope_theta"] == 5e5
        whole = language_model({"model_type": "mistral3"})
        assert carry_over(whole)["rope_theta"] == 1e9

    def test_the_whole_comes_first(self):
        """Where both say which tokens end a text, or how weights are quantised."""
        text = {"eos_token_id": 1, "quantization": {"bits": 8}}
        config = inner("qwen3_vl", **text)
        found = language_model(config)
        assert found["eos_token_id"] == 1 and found["quantization"] == {"bits": 8}
        outer = {"eos_token_id": [2, 3], "quantization": {"bits": 4}}
        found = language_model({**config, **outer})
        assert found["eos_token_id"] == [2, 3] and found["quantization"] == {"bits": 4}

    def test_what_nobody_says_has_no_default(self):
        """Tokens are the tokenizer's then."""
        assert "eos_token_id" not in language_model(inner("qwen3_vl"))
        assert "eos_token_id" not in language_model(inner("qwen2_vl"))

    @pytest.mark.parametrize(
        "config, words",
        [
            (inner("mistral3", model_type="mistral4"), ["mistral3", "'mistral4'"]),
            (inner("mistral3", model_type="no_such"), ["no_such"]),
            (inner("mistral3", model_type=["mistral"]), ["cannot be read"]),
            ({"model_type": "qwen3_vl", "text_config": 3}, ["text_config", "qwen3_vl"]),
            ({"model_type": "gemma3", "hidden_size": 64}, ["gemma3", "text_config"]),
            (inner("qwen3_vl", hidden_size="wide"), ["hidden_size", "'wide'"]),
            (inner("qwen3_vl", num_hidden_layers=10**9), ["num_hidden_layers"]),
            (inner("qwen3_vl", hidden_act="relu"), ["hidden_act", "'relu'"]),
            (inner("qwen3_vl", rope_parameters=3), ["cannot be read"]),
        ],
    )
    def test_refused_by_name(self, config, words):
        with pytest.raises(AllMemError) as refused:
            carry_over(language_model(config))
        for word in words:
            assert word in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_a_wrapper_that_is_not_known(self):
        """Whether it computes the same for text alone is not known either."""
        with pytest.raises(AllMemError, match="'paligemma' is not supported"):
            carry_over(language_model(inner("paligemma", model_type="gemma")))


@pytest.mark.parametrize(
    "name",
    ["model.bridge.weight", "model.language_model.layers.0.adapter.weight", "x"],
)
def test_a_tensor_that_is_not_known_is_refused(copy, tmp_path, name):
    folder = copy("qwen3_vl")
    change_weights(folder, lambda weights: weights.update({name: mx.ones(2)}))
    plain = name.replace("language_model.", "")
    with pytest.raises(AllMemError, match=plain.replace(".", r"\.")):
        convert(folder, tmp_path / "new", **SIZES)


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.x.weight",
        "model.vision_tower.x.weight",
        "vision_model.x",
        "visual.x",
        "model.visual.x",
        "model.vision_embedder.x",
        "vision_embedder.x",
        "audio_tower.x",
        "model.audio_tower.x",
        "model.multi_modal_projector.x",
        "multi_modal_projector.x",
        "model.embed_vision.x",
        "embed_audio.x",
        "model.connector.x",
        "image_newline",
        "language_model.mtp.fc.weight",
    ],
)
def test_towers_are_known_by_their_names(name):
    config = {"num_hidden_layers": 2, "tie_word_embeddings": False}
    assert language_model_weights({name: 0}, config) == ({}, [name])


NONSENSE = [None, 0, -1, 1.5, 10**12, math.nan, "", "x", [], [1], {}, {"a": 1}, True]


def test_settings_that_make_no_sense():
    """Changed at random, a configuration is read, or refused in a line."""
    from transformers import AutoConfig

    rng, refused = random.Random(0), 0
    for name in sorted(WRAPPERS) * 4:
        wrapper = WRAPPERS[name]
        config = AutoConfig.for_model(
            wrapper.kind, text_config=wrapper.text, **wrapper.whole
        ).to_dict()
        for _ in range(rng.choice([1, 2, 3])):
            inner = config.get("text_config")
            inside = isinstance(inner, dict) and rng.random() < 0.6
            place = inner if inside else config
            place[rng.choice([*place, *SHARED, "rope_scaling"])] = rng.choice(NONSENSE)
        try:
            base = language_model(config)
            carry_over({**base})
            language_model_quantization(base.get("quantization"))
        except AllMemError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(WRAPPERS)
