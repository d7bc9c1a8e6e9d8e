"""Folders as mlx-community publishes them: quantised in any way, beside other towers,
with files and tensors that are left out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from family_cases import YARN, complete, save_checkpoint, save_family, settings
from helpers import (
    assert_close,
    assert_same_arrays,
    change_config,
    change_weights,
    random_tokens,
    read_config,
    slow_beyond,
    transformers_logits,
    transformers_model,
)
from mlx.utils import tree_flatten
from mlx_lm.convert import convert as mlx_lm_convert
from wrapper_cases import WRAPPERS, of_case, save_wrapper

from allmem_mlx import load
from allmem_mlx.convert import convert
from allmem_mlx.errors import AllMemError
from allmem_mlx.model import is_memory
from allmem_mlx.variants import base_model

SIZES = {"window": 224, "sinks": 4, "chunk": 64}


def arrays(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model.safetensors"))


def publish(source: Path, folder: Path, kind: str | None = None) -> Path:
    """A checkpoint of transformers as mlx-lm writes it, whose model files do not know
    all that transformers writes.

    Args:
        source (Path): the checkpoint.
        folder (Path): to be made.
        kind (str): ``model_type`` of a model with towers around the language model.
    """
    convert(source, folder, **SIZES)
    model, _ = load(folder)
    config = {**model.base_config, "eos_token_id": 126}
    weights = dict(tree_flatten(base_model(model).parameters()))
    if kind is not None:
        config = {"model_type": kind, "vocab_size": 128, "text_config": config}
        weights = {f"language_model.{name}": x for name, x in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WIDE = replace(WRAPPERS["gemma3"], text=of_case("gemma3_text", hidden_size=64))
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
# mlx-lm does not know the other value of "truncate", which transformers does.
GPT_OSS = settings("gpt_oss")[1] | {"rope_parameters": YARN}
# Family of the language model -> how a checkpoint is saved, and what is around it.
BASES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "qwen3": (lambda x: save_family(x, "qwen3", complete({})), None),
    "qwen3_moe": (lambda x: save_family(x, "qwen3_moe", complete(EXPERTS)), None),
    "gemma3_text": (lambda x: save_wrapper(x, WIDE), "gemma3"),
    "qwen3_5_text": (lambda x: save_wrapper(x, WRAPPERS["qwen3_5"]), "qwen3_5"),
    "lfm2": (lambda x: save_checkpoint(x, "lfm2"), None),
    "gpt_oss": (lambda x: save_family(x, "gpt_oss", GPT_OSS), None),
}


def save_base(folder: Path, name: str) -> Path:
    save, around = BASES[name]
    checkpoint = folder.with_name("checkpoint")
    save(checkpoint)
    return publish(checkpoint, folder, around)


QUANTISED = {
    **{f"{bits} bits": {"q_bits": bits} for bits in (3, 4, 5, 6, 8)},
    "mixed_4_6": {"quant_predicate": "mixed_4_6"},
    "mxfp4": {"q_mode": "mxfp4"},
    "nvfp4": {"q_mode": "nvfp4", "q_group_size": 16},
    "mxfp8": {"q_mode": "mxfp8", "q_bits": 8},
}


# Those that differ in what is quantised are tried with all ways, the others with some.
TRIED = [("qwen3", how) for how in QUANTISED]
TRIED += [(name, how) for name in BASES for how in ("4 bits", "mixed_4_6", "mxfp4")]
TRIED.remove(("lfm2", "mixed_4_6"))  # mlx-lm looks for other names
TRIED = list(dict.fromkeys(TRIED))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """``bases(name)``: each made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save_base(tmp_path_factory.mktemp(name) / "base", name)
        return made[name]

    return get


@pytest.fixture
def dense(bases) -> Path:
    return bases("qwen3")


def quantised(base: Path, folder: Path, **options: Any) -> Path:
    """mlx-lm's folder of a base."""
    options = {"q_group_size": 32, **options}
    mlx_lm_convert(str(base), str(folder), quantize=True, **options)
    return folder


def plain(name: str) -> str:
    """A name in a folder of mlx-lm as the language model alone has it."""
    return name.removeprefix("language_model.")


def assert_kept(source: Path, new: Path) -> None:
    """The packed weights, and what mlx-lm computes with them, to the bit."""
    actual, expected = arrays(new), arrays(source)
    expected = {plain(name): x for name, x in expected.items()}
    assert any(name.endswith(".scales") for name in expected)
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype and mx.array_equal(actual[name], x), name
    before, after = read_config(source), read_config(new)
    settings = {plain(name): x for name, x in before["quantization"].items()}
    assert after["quantization"] == after["quantization_config"] == settings
    tokens = random_tokens(1, 40)
    assert mx.array_equal(load(new)[0](tokens), mlx_lm.load(str(source))[0](tokens))


def refusal(*words: str, **options: Any) -> None:
    with pytest.raises(AllMemError) as error:
        convert(**options)
    for word in words:
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tried", slow_beyond(11, TRIED), ids=map(" ".join, TRIED))
def test_a_quantised_folder_stays_as_it_is(bases, tmp_path, tried):
    name, how = tried
    folder = quantised(bases(name), tmp_path / "quantised", **QUANTISED[how])
    convert(folder, tmp_path / "new", **SIZES)
    assert_kept(folder, tmp_path / "new")


RECIPES = ["mixed_4_6", "nvfp4", "4 bits", "mxfp4", "mxfp8"]


@pytest.mark.parametrize("how", slow_beyond(2, RECIPES))
def test_a_converted_folder_is_quantised_by_mlx_lm(dense, tmp_path, how):
    """What it computes is what the base computes, quantised so."""
    convert(dense, tmp_path / "new", **SIZES)
    options = {**QUANTISED[how], "trust_remote_code": True}
    folder = quantised(tmp_path / "new", tmp_path / "quantised", **options)
    expected = quantised(dense, tmp_path / "expected", **options)
    tokens = random_tokens(1, 40)
    model, _ = load(folder)
    assert mx.array_equal(model(tokens), mlx_lm.load(str(expected))[0](tokens))
    assert not any(is_memory(x) for x in arrays(folder) if x.endswith(".scales"))


@pytest.fixture(scope="module")
def packed(bases, tmp_path_factory) -> Path:
    """4 bits."""
    return quantised(bases("qwen3"), tmp_path_factory.mktemp("packed") / "packed")


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


class TestModules:
    """A quantisation that is not the same for all modules."""

    def some(self, path: str, module: Any) -> bool | dict[str, Any]:
        """The embedding at 8 bits, values not at all."""
        if path.endswith("embed_tokens"):
            return {"group_size": 64, "bits": 8, "mode": "affine"}
        return not path.endswith("v_proj")

    @pytest.mark.parametrize("name", slow_beyond(3, BASES))
    def test_embedding_and_exceptions(self, bases, tmp_path, name):
        folder = quantised(bases(name), tmp_path / "some", quant_predicate=self.some)
        quantization = read_config(folder)["quantization"]
        parts = (x.removesuffix(".weight") for x in arrays(folder))
        quantization |= {x: False for x in parts if x.endswith("v_proj")}
        change_config(folder, quantization=quantization)
        convert(folder, tmp_path / "new", **SIZES)
        assert_kept(folder, tmp_path / "new")
        model, _ = load(tmp_path / "new")
        assert model.model.embed_tokens.bits == 8
        modules = dict(model.named_modules())
        values = [x for path, x in modules.items() if path.endswith("v_proj")]
        outputs = [x for path, x in modules.items() if path.endswith(".q_proj")]
        assert values and not any("scales" in x for x in values)
        assert outputs and all("scales" in x for x in outputs)

    def test_two_modes(self, dense, tmp_path):
        """The embedding is affine, all else mxfp4."""
        options = {"q_mode": "mxfp4", "quant_predicate": self.some}
        folder = quantised(dense, tmp_path / "two", **options)
        convert(folder, tmp_path / "new", **SIZES)
        assert_kept(folder, tmp_path / "new")
        model, _ = load(tmp_path / "new")
        modes = model.model.embed_tokens.mode, model.layers[0].mlp.up_proj.mode
        assert modes == ("affine", "mxfp4")

    def test_types_stay_as_they_are(self, copy, tmp_path):
        """Scales that are rounded would be another quantisation; so would norms that
        follow them be another model."""

        def change(weights):
            for name, x in weights.items():
                if name.endswith((".scales", ".biases")):
                    weights[name] = x.astype(mx.bfloat16)

        change_weights(copy, change)
        convert(copy, tmp_path / "new", **SIZES)
        assert_kept(copy, tmp_path / "new")
        kinds = {x.dtype for name, x in arrays(tmp_path / "new").items()}
        assert {mx.bfloat16, mx.float32, mx.uint32} <= kinds

    def test_another_type_is_cast_to(self, copy, tmp_path):
        """Of what is not packed."""
        convert(copy, tmp_path / "new", dtype="float16", **SIZES)
        new = arrays(tmp_path / "new")
        for name, x in arrays(copy).items():
            packed = x.dtype == mx.uint32
            assert mx.array_equal(new[name], x if packed else x.astype(mx.float16))
        assert load(tmp_path / "new")[0](random_tokens(1, 20)).dtype == mx.float16

    @pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
    def test_the_memory_has_the_type_of_the_model(self, tmp_path, mode):
        """Also where all matrices are packed, and their scales are integers."""
        save_family(tmp_path / "base", "llama", complete({}))
        folder = quantised(
            tmp_path / "base",
            tmp_path / "packed",
            q_mode=mode,
            q_group_size=None,
            dtype="bfloat16",
        )
        convert(folder, tmp_path / "new", **SIZES)
        assert read_config(tmp_path / "new")["torch_dtype"] == "bfloat16"
        model, _ = load(tmp_path / "new")
        assert model.layers[0].self_attn.memory.in_proj.weight.dtype == mx.bfloat16
        assert model(random_tokens(1, 20)).dtype == mx.bfloat16

    def test_settings_of_modules_that_do_not_fit(self, copy, tmp_path):
        """A module that is said to have other bits than it has."""
        name = "model.layers.0.mlp.up_proj"
        quantization = read_config(copy)["quantization"]
        quantization |= {name: {"group_size": 32, "bits": 8}}
        change_config(copy, quantization=quantization)
        refusal(copy, name, source=copy, mlx_path=tmp_path / "new")


class TestTowers:
    """A quantised folder whose towers are quantised too, as mlx-vlm writes it."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        save_base(tmp_path / "base", "gemma3_text")
        folder = quantised(
            tmp_path / "base", tmp_path / "packed", quant_predicate="mixed_4_6"
        )
        tower = "vision_tower.encoder.layers.0.mlp.fc1"
        quantization = read_config(folder)["quantization"]
        quantization |= {tower: {"group_size": 32, "bits": 8}}
        change_config(folder, quantization=quantization)
        parts = ("weight", "scales", "biases")
        extras = {f"{tower}.{part}": mx.ones((2, 2)) for part in parts}
        change_weights(folder, lambda weights: weights.update(extras))
        return folder

    def test_they_are_left_out_and_said(self, folder, tmp_path, capsys):
        before = arrays(folder)
        capsys.readouterr()
        convert(folder, tmp_path / "new", **SIZES)
        lines = [x for x in capsys.readouterr().err.splitlines() if "left out" in x]
        assert len(lines) == 1 and "vision_tower.encoder.layers.0" in lines[0]
        config = read_config(tmp_path / "new")
        assert not any("tower" in name for name in config["quantization"])
        assert not any(name.startswith("language") for name in config["quantization"])
        assert config["quantization"]["model.layers.0.mlp.up_proj"]["bits"] == 4
        for name, x in arrays(tmp_path / "new").items():
            if f"language_model.{name}" in before:
                assert mx.array_equal(before[f"language_model.{name}"], x)
        model, _ = load(tmp_path / "new")
        bits = {
            module.bits for _, module in model.named_modules() if "scales" in module
        }
        assert bits == {4, 6}

    def test_the_model_has_no_settings_of_towers(self, folder, tmp_path):
        convert(folder, tmp_path / "new", **SIZES)
        config = read_config(tmp_path / "new")
        for name in ("text_config", "vision_config", "image_token_index"):
            assert name not in config
        assert config["torch_dtype"] == "float32"

    @pytest.mark.parametrize(
        "prefix", ["model.language_model.", "model.text_model.", "language_model."]
    )
    def test_places_of_the_language_model(self, folder, tmp_path, prefix):
        """As model files have them: settings of modules have the names of tensors."""
        convert(folder, tmp_path / "expected", **SIZES)

        def rename(names):
            renamed = {
                name.replace("language_model.model.", prefix): x
                for name, x in names.items()
            }
            names.clear()
            names.update(renamed)

        change_weights(folder, rename)
        rename(quantization := read_config(folder)["quantization"])
        change_config(folder, quantization=quantization)
        convert(folder, tmp_path / "new", **SIZES)
        assert_same_arrays(arrays(tmp_path / "new"), arrays(tmp_path / "expected"))
        configs = [read_config(tmp_path / x) for x in ("new", "expected")]
        assert configs[0]["quantization"] == configs[1]["quantization"]
        assert "model.embed_tokens" in configs[0]["quantization"]


class TestTokens:
    """Where a folder says which tokens end an answer."""

    def ends(self, folder: Path, new: Path) -> set[int]:
        convert(folder, new, **SIZES)
        found: set[int] = load(new)[1].eos_token_ids
        assert found == mlx_lm.load(str(folder))[1].eos_token_ids
        return found

    def test_several(self, copy, tmp_path):
        change_config(copy, eos_token_id=[126, 124, 3])
        (copy / "generation_config.json").unlink()
        assert self.ends(copy, tmp_path / "new") == {126, 124, 3}
        assert not (tmp_path / "new" / "generation_config.json").exists()

    def test_those_of_the_generation_come_first(self, copy, tmp_path):
        change_config(copy, eos_token_id=[124])
        file = copy / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": [5, 6]}))
        assert {5, 6} <= self.ends(copy, tmp_path / "new") <= {5, 6, 126}

    def test_of_a_model_with_towers(self, tmp_path):
        """The whole says more than its language model."""
        save_base(tmp_path / "base", "gemma3_text")
        change_config(tmp_path / "base", eos_token_id=[126, 7])
        (tmp_path / "base" / "generation_config.json").unlink()
        assert self.ends(tmp_path / "base", tmp_path / "new") == {126, 7}


class TestOtherFiles:
    """Weights of heads that predict more tokens, in a file of their own."""

    MTP = "mtp.layers.0.self_attn.q_proj.weight"

    def index(self, folder: Path, **files: str) -> None:
        weight_map = dict.fromkeys(arrays(folder), "model.safetensors")
        index = {"metadata": {}, "weight_map": weight_map | files}
        text = json.dumps(index)
        (folder / "model.safetensors.index.json").write_text(text)

    def said(self, folder: Path, new: Path, capsys) -> str:
        capsys.readouterr()
        convert(folder, new, **SIZES)
        return capsys.readouterr().err

    @pytest.mark.parametrize("indexed", [True, False])
    @pytest.mark.parametrize("present", [True, False])
    def test_they_are_left_out(self, copy, tmp_path, capsys, indexed, present):
        """A download has no file but those that are needed."""
        if present:
            file = str(copy / "mtp.safetensors")
            mx.save_safetensors(file, {self.MTP: mx.ones((2, 2))})
        if indexed:
            self.index(copy, **{self.MTP: "mtp.safetensors"})
        said = self.said(copy, tmp_path / "new", capsys)
        assert said.count(f"left out of the weights: {self.MTP}\n") == (
            indexed or present
        )
        assert_kept(copy, tmp_path / "new")

    def test_a_copy_in_another_format_is_not_read(self, copy, tmp_path, capsys):
        weights = {"layers.0.attention.wq.weight": mx.ones((2, 2))}
        mx.save_safetensors(str(copy / "consolidated.safetensors"), weights)
        (copy / "damaged.safetensors").write_bytes(b"junk")
        assert "left out" not in self.said(copy, tmp_path / "new", capsys)

    def test_what_the_model_needs_is_refused(self, copy, tmp_path):
        self.index(copy, **{"model.norm.weight": "rest.safetensors"})
        words = ["model.norm.weight", "rest.safetensors", "model*.safetensors"]
        refusal(*words, source=copy, mlx_path=tmp_path / "new")

    def test_a_missing_file_is_refused(self, copy, tmp_path):
        self.index(copy, **{"model.norm.weight": "model-2.safetensors"})
        words = ["model-2.safetensors", "not in its folder"]
        refusal(*words, source=copy, mlx_path=tmp_path / "new")

    def test_several_files(self, copy, tmp_path):
        """As an index divides them, with heads and towers among them."""
        weights = dict(arrays(copy))
        weights |= {self.MTP: mx.ones((2, 2)), "visual.norm.weight": mx.ones(2)}
        mx.eval(weights)
        convert(copy, tmp_path / "expected", **SIZES)
        (copy / "model.safetensors").unlink()
        names, files = sorted(weights), {}
        for i in range(3):
            file = f"model-{i + 1:05}-of-00003.safetensors"
            part = {name: weights[name] for name in names[i::3]}
            mx.save_safetensors(str(copy / file), part)
            files |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": files}
        text = json.dumps(index)
        (copy / "model.safetensors.index.json").write_text(text)
        convert(copy, tmp_path / "new", **SIZES)
        assert_same_arrays(arrays(tmp_path / "new"), arrays(tmp_path / "expected"))


class TestOtherMethods:
    """Weights that MLX did not quantise are refused by the method's name."""

    @pytest.mark.parametrize(
        "method", ["awq", "gptq", "fp8", "compressed-tensors", "bitnet", "mxfp4"]
    )
    def test_named(self, dense, tmp_path, method):
        folder = shutil.copytree(dense, tmp_path / "copy")
        change_config(folder, quantization_config={"quant_method": method})
        refusal(folder, repr(method), source=folder, mlx_path=tmp_path / "new")

    def test_inside_a_model_with_towers(self, tmp_path):
        save_base(tmp_path / "base", "gemma3_text")
        text = read_config(tmp_path / "base")["text_config"]
        text |= {"quantization_config": {"quant_method": "fp8"}}
        change_config(tmp_path / "base", text_config=text)
        refusal("'fp8'", source=tmp_path / "base", mlx_path=tmp_path / "new")

    def test_in_a_file_of_its_own(self, dense, tmp_path):
        folder = shutil.copytree(dense, tmp_path / "copy")
        settings = {"quantization": {"quant_algo": "NVFP4"}}
        (folder / "hf_quant_config.json").write_text(json.dumps(settings))
        refusal("'modelopt'", source=folder, mlx_path=tmp_path / "new")

    def test_quantised_twice(self, copy, tmp_path):
        words = ["quantised already", "-q"]
        refusal(*words, source=copy, mlx_path=tmp_path / "new", quantize=True)

    def test_only_the_copy_of_the_settings(self, copy, tmp_path):
        """``quantization_config`` alone is not MLX's."""
        config = read_config(copy)
        del config["quantization"]
        (copy / "config.json").write_text(json.dumps(config))
        refusal("quantised by None", source=copy, mlx_path=tmp_path / "new")


class TestPackedExperts:
    """OpenAI's own checkpoints of gpt-oss, whose packed experts are MLX's mxfp4."""

    EXPERTS = 4

    @pytest.fixture
    def folders(self, tmp_path) -> tuple[Path, Path]:
        """Packed, and as transformers unpacks it."""
        import torch
        from safetensors.torch import load_file, save_file
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        save_checkpoint(tmp_path / "unpacked", "gpt_oss")
        folder = shutil.copytree(tmp_path / "unpacked", tmp_path / "packed")
        generator = torch.Generator().manual_seed(0)
        packed = load_file(folder / "model.safetensors")
        unpacked = dict(packed)
        for name in list(packed):
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                experts, inputs, outputs = packed.pop(name).shape
                groups = (experts, outputs, inputs // 32)
                blocks = torch.randint(0, 256, (*groups, 16), generator=generator)
                scales = torch.randint(120, 124, groups, generator=generator)
                packed[f"{name}_blocks"] = blocks = blocks.to(torch.uint8)
                packed[f"{name}_scales"] = scales = scales.to(torch.uint8)
                unpacked[name] = convert_moe_packed_tensors(
                    blocks, scales, dtype=torch.float32
                )
        save_file(packed, folder / "model.safetensors", {"format": "pt"})
        file = tmp_path / "unpacked" / "model.safetensors"
        save_file(unpacked, file, {"format": "pt"})
        settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
        change_config(folder, quantization_config=settings)
        return folder, tmp_path / "unpacked"

    def test_they_are_taken_over(self, folders, tmp_path):
        packed, unpacked = folders
        convert(packed, tmp_path / "new", **SIZES)
        mxfp4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        config = read_config(tmp_path / "new")
        assert config["quantization"] == config["quantization_config"] == mxfp4
        new, old = arrays(tmp_path / "new"), arrays(packed)
        experts = "model.layers.1.mlp.experts."
        blocks = old[f"{experts}gate_up_proj_blocks"].reshape(self.EXPERTS, 256, -1)
        up = new[f"{experts}up_proj.weight"]
        assert mx.array_equal(up.view(mx.uint8), blocks[:, 1::2])
        scales = old[f"{experts}down_proj_scales"]
        assert mx.array_equal(new[f"{experts}down_proj.scales"], scales)
        tokens = random_tokens(1, 40)
        actual, model = load(tmp_path / "new")[0](tokens), transformers_model(unpacked)
        assert_close("logits", actual, transformers_logits(model, tokens), 1e-5)

    def test_they_are_quantised_already(self, folders, tmp_path):
        words = ["quantised already", "-q"]
        refusal(*words, source=folders[0], mlx_path=tmp_path / "new", quantize=True)
