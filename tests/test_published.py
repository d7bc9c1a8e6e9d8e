"""Checkpoints and adapters as they are published: with copies, extras, old formats."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from family_cases import CASES, save_checkpoint, settings
from gguf_files import save_gguf
from helpers import (
    assert_close,
    assert_refused,
    assert_same_arrays,
    change_config,
    change_weights,
    random_tokens,
    slow_beyond,
    tiny_base_folder,
    transformers_logits,
    transformers_model,
)
from mlx.utils import tree_flatten
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.tuner.utils import linear_to_lora_layers
from processes import run
from safetensors.torch import load_file
from tokenizers import Tokenizer
from wrapper_cases import WRAPPERS, save_wrapper

from allmem_mlx import load
from allmem_mlx.convert import convert
from allmem_mlx.convert.pickled import unpack
from allmem_mlx.convert.torch_export import export_torch
from allmem_mlx.errors import AllMemError
from allmem_mlx.model_folder import tokens_without_row

SIZES = {"window": 48, "sinks": 4, "chunk": 64}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# The first case of each family that uses its embedding as a head.
TIED = {family: name for name, (family, _) in reversed(CASES.items())}
TIED = {f: n for f, n in TIED.items() if settings(n)[1]["tie_word_embeddings"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Tied, in float32, without numbers that are alike by chance."""
    return tiny_base_folder(tmp_path_factory.mktemp("base") / "base", "llama")


@pytest.fixture
def copy(base, tmp_path) -> Path:
    return shutil.copytree(base, tmp_path / "copy")


@pytest.fixture(scope="module")
def model_folder(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    convert(base, folder, **SIZES)
    return folder


def arrays(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model.safetensors"))


def assert_same_weights(folder: Path, other: Path) -> None:
    assert_same_arrays(arrays(folder), arrays(other))


def refusal(*words: str, of=convert, **options) -> str:
    with pytest.raises(AllMemError) as error:
        of(**options)
    for word in words:
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestTiedHead:
    @pytest.mark.parametrize("family", slow_beyond(6, TIED))
    def test_a_copy_of_the_embedding_is_dropped(self, family, tmp_path):
        folder = save_checkpoint(tmp_path / "base", TIED[family])
        convert(folder, tmp_path / "without", **SIZES)
        change_weights(folder, lambda w: w.update({HEAD: w[EMBEDDING]}))
        convert(folder, tmp_path / "with", **SIZES)
        assert_same_weights(tmp_path / "with", tmp_path / "without")
        load(tmp_path / "with")

    @pytest.mark.parametrize("family", ["llama", "gemma", "gemma3_text", "helium"])
    def test_another_head_is_refused(self, family, tmp_path):
        """transformers would use it, mlx-lm would not."""
        folder = save_checkpoint(tmp_path / "base", TIED[family])
        change_weights(folder, lambda w: w.update({HEAD: w[EMBEDDING] * 1.01}))
        words = [folder, HEAD, "differs from the embedding", "tie_word_embeddings"]
        refusal(*words, source=folder, mlx_path=tmp_path / "new")

    def test_the_only_matrix_may_have_either_name(self, base, copy, tmp_path):
        change_weights(copy, lambda w: w.update({HEAD: w.pop(EMBEDDING)}))
        convert(copy, tmp_path / "new", **SIZES)
        convert(base, tmp_path / "expected", **SIZES)
        assert_same_weights(tmp_path / "new", tmp_path / "expected")

    def test_a_model_that_is_not_tied_stays_so(self, copy, tmp_path):
        """Also if both matrices happen to be equal."""
        change_config(copy, tie_word_embeddings=False)
        change_weights(copy, lambda w: w.update({HEAD: w[EMBEDDING]}))
        convert(copy, tmp_path / "new", **SIZES)
        assert HEAD in arrays(tmp_path / "new")
        change_weights(copy, lambda w: w.pop(HEAD))
        refusal("lm_head.weight", source=copy, mlx_path=tmp_path / "none")

    def test_of_a_quantised_folder(self, base, tmp_path):
        folder = quantised(base, tmp_path / "q", q_bits=4)
        parts = ("weight", "scales", "biases")
        copies = [(f"lm_head.{x}", f"model.embed_tokens.{x}") for x in parts]
        convert(folder, tmp_path / "expected", **SIZES)
        change_weights(folder, lambda w: w.update({a: w[b] for a, b in copies}))
        convert(folder, tmp_path / "new", **SIZES)
        assert_same_weights(tmp_path / "new", tmp_path / "expected")
        change_weights(folder, lambda w: w.update({"lm_head.biases": w.pop(HEAD)}))
        refusal("lm_head.biases", source=folder, mlx_path=tmp_path / "none")

    def test_beside_distilled_weights(self, base, copy, model_folder, tmp_path):
        """The source has both, and the checkpoint another embedding, twice."""
        memory = tmp_path / "memory.safetensors"
        export_torch(model_folder, memory)
        checkpoint = load_file(memory) | load_file(base / "model.safetensors")
        checkpoint[EMBEDDING] = checkpoint[EMBEDDING] * 2
        checkpoint[HEAD] = checkpoint[EMBEDDING].clone()
        torch.save(checkpoint, tmp_path / "all.pt")
        change_weights(copy, lambda w: w.update({HEAD: w[EMBEDDING]}))
        convert(copy, tmp_path / "new", torch_path=tmp_path / "all.pt", **SIZES)
        new = arrays(tmp_path / "new")
        assert mx.array_equal(new[EMBEDDING], arrays(base)[EMBEDDING] * 2)
        checkpoint[HEAD] = checkpoint[HEAD] * 2
        torch.save(checkpoint, tmp_path / "all.pt")
        options = {"torch_path": tmp_path / "all.pt", "mlx_path": tmp_path / "none"}
        refusal(HEAD, "all.pt", source=copy, **options)


LAYER = "model.layers.0.self_attn."
EXTRAS = {
    "inv_freq": f"{LAYER}rotary_emb.inv_freq",
    "inv_freq of the model": "model.rotary_emb.inv_freq",
    "inv_freq of sliding layers": "model.rotary_emb_local.inv_freq",
    "cosines": f"{LAYER}rotary_emb.cos_cached",
    "mask": f"{LAYER}attn.bias",
    "value of the mask": "model.layers.1.attention.masked_bias",
    "mtp": "mtp.layers.0.self_attn.q_proj.weight",
    "mtp of the model": "model.mtp.0.norm.weight",
    "mtp of mimo": "model.mtp_layers.0.input_proj.weight",
    "mtp of ernie": "model.mtp_linear_proj.0.weight",
    "vision": "vision_tower.embeddings.patch_embedding.weight",
    "vision, new names": "model.vision_tower.embeddings.patch_embedding.weight",
    "projector": "multi_modal_projector.mm_input_projection_weight",
}


class TestExtras:
    @pytest.mark.parametrize("family", ["llama", "gemma", "olmo2", "phi3"])
    def test_left_out_and_said_once(self, family, tmp_path, capsys):
        folder = save_checkpoint(tmp_path / "base", TIED[family])
        convert(folder, tmp_path / "expected")
        assert "left out" not in capsys.readouterr().err
        extras = dict.fromkeys(EXTRAS.values(), mx.ones(4))
        change_weights(folder, lambda w: w.update(extras))
        convert(folder, tmp_path / "new")
        assert_same_weights(tmp_path / "new", tmp_path / "expected")
        lines = [x for x in capsys.readouterr().err.splitlines() if "WARNING" in x]
        assert len(lines) == 1 and "left out of the weights: " in lines[0]
        assert f"and {len(EXTRAS) - 3} more" in lines[0]

    @pytest.mark.parametrize("name", EXTRAS.values(), ids=EXTRAS)
    def test_each_is_named(self, copy, tmp_path, name, capsys):
        change_weights(copy, lambda w: w.update({name: mx.ones(4)}))
        convert(copy, tmp_path / "new", **SIZES)
        assert f"left out of the weights: {name}\n" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.0.self_attn.q_proj.lora_A",
            "model.layers.0.mlp.mtprune.weight",
            "model.layers.0.self_attn.k_proj.bias",
            "my_visual.weight",
            "score.weight",
        ],
    )
    def test_what_is_not_known_is_refused(self, copy, tmp_path, name):
        change_weights(copy, lambda w: w.update({name: mx.ones(4)}))
        refusal(copy, name, source=copy, mlx_path=tmp_path / "new")

    def test_layers_that_predict_more_tokens(self, copy, tmp_path, capsys):
        """Behind the others, if config.json says so; else they are too many."""
        first = f"{LAYER}q_proj.weight"
        name = first.replace("0", "2")
        change_weights(copy, lambda w: w.update({name: w[first]}))
        refusal("model.layers.2", source=copy, mlx_path=tmp_path / "none")
        change_config(copy, num_nextn_predict_layers=1)
        convert(copy, tmp_path / "new", **SIZES)
        assert f"left out of the weights: {name}\n" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "prefix", ["language_model.model.", "model.language_model."]
    )
    def test_a_vision_tower(self, tmp_path, prefix, capsys):
        """Under both names that transformers has used; its tower is named."""
        folder = tmp_path / "base"
        kind = save_wrapper(folder, WRAPPERS["gemma3"])
        tokens = random_tokens(1, 20, vocab=90)
        expected = transformers_logits(transformers_model(folder, kind), tokens)

        def rename(weights):
            for name in list(weights):
                plain = name.replace("language_model.model.", prefix)
                weights[plain] = weights.pop(name)

        change_weights(folder, rename)
        convert(folder, tmp_path / "new", window=256)
        model, _ = load(tmp_path / "new")
        assert_close("logits", model(tokens), expected, 1e-5)
        err = capsys.readouterr().err
        assert err.count("left out of the weights") == 1 and "vision_tower" in err


class TestChatTemplate:
    """chat_template.json of a processor, beside a tokenizer that has no template."""

    MESSAGES = [{"role": "user", "content": "Hello"}]

    @pytest.fixture
    def old(self, copy):
        """The folder, and the template that was taken from it."""
        template = (copy / "chat_template.jinja").read_text()
        (copy / "chat_template.jinja").unlink()
        return copy, template

    def write(self, folder, value):
        (folder / "chat_template.json").write_text(json.dumps(value))

    def test_it_is_carried_over(self, old, model_folder, tmp_path):
        folder, template = old
        self.write(folder, {"chat_template": template})
        convert(folder, tmp_path / "new", **SIZES)
        said = [
            load(x)[1].apply_chat_template(self.MESSAGES, tokenize=False)
            for x in (tmp_path / "new", model_folder)
        ]
        assert said[0] == said[1] and "Hello" in said[0]
        assert (tmp_path / "new" / "chat_template.jinja").read_text() == template

    def test_it_is_read_where_a_model_is_loaded(self, model_folder, tmp_path):
        folder = shutil.copytree(model_folder, tmp_path / "model")
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        assert not load(folder)[1].has_chat_template
        self.write(folder, {"chat_template": template})
        assert load(folder)[1].has_chat_template

    def test_the_tokenizer_s_own_comes_first(self, copy, tmp_path):
        own = (copy / "chat_template.jinja").read_text()
        self.write(copy, {"chat_template": "{{ messages[0].content }}"})
        convert(copy, tmp_path / "new", **SIZES)
        assert load(tmp_path / "new")[1].chat_template == own

    @pytest.mark.parametrize(
        "value, words",
        [
            ({"chat_template": "{% for m in"}, "fails"),
            ({"chat_template": ["a"]}, "has no chat_template"),
            ([1], "does not hold an object"),
            (
                # Of a processor that wants a message in parts.
                {
                    "chat_template": "{% for m in messages %}{% for c in m.content %}"
                    "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
                    "{% endfor %}"
                },
                "does not show plain text",
            ),
        ],
    )
    def test_one_that_cannot_be_used(self, old, tmp_path, capsys, value, words):
        folder, _ = old
        self.write(folder, value)
        convert(folder, tmp_path / "new", **SIZES)
        lines = [x for x in capsys.readouterr().err.splitlines() if "WARNING" in x]
        assert len(lines) == 1
        for word in ("chat_template.json", words, "the model has no chat template"):
            assert word in lines[0]
        assert not load(tmp_path / "new")[1].has_chat_template


class TestPickles:
    """Weights as transformers saved them until 2023."""

    NAME = "pytorch_model-0000{}-of-00002.bin"

    @pytest.fixture
    def pickled(self, copy):
        """The folder without weights, and what they are, with the head again."""
        weights = load_file(copy / "model.safetensors")
        weights[HEAD] = weights[EMBEDDING]  # one storage under two names
        weights[f"{LAYER}rotary_emb.inv_freq"] = torch.ones(8)
        weights[f"{LAYER}attn.bias"] = torch.ones(4, 4, dtype=torch.bool)
        (copy / "model.safetensors").unlink()
        return copy, weights

    def save_shards(self, folder, weights):
        names, where = sorted(weights), {}
        for i, part in enumerate((names[::2], names[1::2]), 1):
            where.update(dict.fromkeys(part, self.NAME.format(i)))
            shard = {name: weights[name] for name in part}
            torch.save(shard, folder / self.NAME.format(i))
        index = json.dumps({"weight_map": where})
        (folder / "pytorch_model.bin.index.json").write_text(index)

    @pytest.mark.parametrize("form", ["one file", "before zip", "shards", "no index"])
    def test_they_are_converted(self, pickled, model_folder, tmp_path, form, capsys):
        folder, weights = pickled
        if form in ("one file", "before zip"):
            zipped = form == "one file"
            torch.save(
                weights,
                folder / "pytorch_model.bin",
                _use_new_zipfile_serialization=zipped,
            )
        else:
            self.save_shards(folder, weights)
        if form == "no index":
            (folder / "pytorch_model.bin.index.json").unlink()
        torch.save({"lr": torch.ones(1)}, folder / "training_args.bin")
        convert(folder, tmp_path / "new", **SIZES)
        assert_same_weights(tmp_path / "new", model_folder)
        assert {x.name for x in tmp_path.iterdir()} == {"copy", "new"}
        _, tokenizer = load(tmp_path / "new")
        assert tokenizer.has_chat_template
        assert (tmp_path / "new" / "generation_config.json").is_file()
        assert "| source | copy |" in (tmp_path / "new" / "README.md").read_text()
        err = capsys.readouterr().err
        assert "left out of the weights: " in err
        assert f"{LAYER}rotary_emb.inv_freq" in err and f"{LAYER}attn.bias" in err

    def test_the_type_is_kept_and_shards_are_bounded(
        self, pickled, tmp_path, monkeypatch
    ):
        folder, weights = pickled
        half = {
            n: x.bfloat16() if x.is_floating_point() else x for n, x in weights.items()
        }
        torch.save(half, folder / "pytorch_model.bin")
        stale = folder / "model.safetensors.index.json"
        stale.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
        monkeypatch.setattr("allmem_mlx.convert.pickled.SHARD", 20_000)
        (tmp_path / "unpacked").mkdir()
        config = {"num_hidden_layers": 2, "tie_word_embeddings": True}
        unpack([folder / "pytorch_model.bin"], tmp_path / "unpacked", config)
        shards = list((tmp_path / "unpacked").glob("model-*.safetensors"))
        assert len(shards) > 5
        assert max(file.stat().st_size for file in shards) < 25_000
        convert(folder, tmp_path / "new", **SIZES)
        name = f"{LAYER}q_proj.weight"
        x = arrays(tmp_path / "new")[name]
        assert x.dtype == mx.bfloat16
        assert mx.array_equal(x, mx.array(weights[name].numpy()).astype(mx.bfloat16))

    def test_safetensors_come_first(self, copy, model_folder, tmp_path):
        (copy / "pytorch_model.bin").write_bytes(b"junk")
        convert(copy, tmp_path / "new", **SIZES)
        assert_same_weights(tmp_path / "new", model_folder)

    def test_beside_distilled_weights(self, pickled, model_folder, tmp_path):
        folder, weights = pickled
        torch.save(weights, folder / "pytorch_model.bin")
        export_torch(model_folder, tmp_path / "memory.pt")
        both = torch.load(tmp_path / "memory.pt") | weights
        torch.save(both, tmp_path / "all.pt")
        for path in ("memory.pt", "all.pt"):
            new = tmp_path / f"new-{path}"
            convert(folder, new, torch_path=tmp_path / path, **SIZES)
            assert_same_weights(new, model_folder)

    def test_refused(self, pickled, tmp_path):
        folder, weights = pickled
        file, new = folder / "pytorch_model.bin", tmp_path / "new"

        def refused(*words):
            refusal(*words, source=folder, mlx_path=new)
            assert {x.name for x in tmp_path.iterdir()} == {"copy"}

        file.write_bytes(b"junk")
        refused(file, "damaged")
        torch.save({**weights, "path": Path("x")}, file)
        refused(file, "needs more than tensors", "state_dict")
        name = f"{LAYER}q_proj.weight"
        torch.save({**weights, name: weights[name].to(torch.int8)}, file)
        refused(file, name, "int8", "must be float32")
        torch.save({**weights, HEAD: weights[HEAD] + 1}, file)
        refused(folder, HEAD, "differs from the embedding")
        torch.save({n: x for n, x in weights.items() if n != name}, file)
        refused(folder, name)
        file.unlink()
        self.save_shards(folder, weights)
        (folder / self.NAME.format(2)).unlink()
        refused("pytorch_model.bin.index.json", self.NAME.format(2))

    def test_without_pytorch(self, pickled, tmp_path):
        folder, weights = pickled
        torch.save(weights, folder / "pytorch_model.bin")
        code = "import runpy, sys; sys.modules['torch'] = None\n"
        code += "runpy.run_module('convert', run_name='__main__')"
        flags = ["--hf-path", folder, "--mlx-path", tmp_path / "new"]
        result = run("-c", code, *flags, fresh=True)
        words = "pytorch_model.bin needs PyTorch: pip install 'allmem-mlx[torch]'"
        assert_refused(result, 1, words)


class TestNames:
    """What is said of a model that is in the hub's cache."""

    COMMIT = "0123456789abcdef" * 2

    @pytest.fixture
    def cached(self, base, tmp_path):
        folder = tmp_path / "models--org--tiny-1.0" / "snapshots" / self.COMMIT
        return shutil.copytree(base, folder)

    def texts(self, folder):
        files = [x for x in folder.iterdir() if x.suffix != ".safetensors"]
        return "\n".join(x.read_text() for x in files)

    @pytest.mark.parametrize("way", ["as it is", "a link to it", "from inside"])
    def test_a_snapshot_given_as_a_folder(self, cached, tmp_path, way, monkeypatch):
        source = cached
        if way == "a link to it":
            source = tmp_path / "link"
            source.symlink_to(cached)
        if way == "from inside":
            monkeypatch.chdir(cached)
            source = Path(".")
        convert(source, tmp_path / "new", **SIZES)
        card = (tmp_path / "new" / "README.md").read_text()
        link = "[org/tiny-1.0](https://huggingface.co/org/tiny-1.0)"
        assert f"| source | {link}, commit `{self.COMMIT}` |" in card
        assert "base_model: org/tiny-1.0" in card
        assert self.texts(tmp_path / "new").count(self.COMMIT) == 1
        assert str(tmp_path) not in self.texts(tmp_path / "new")

    def test_memory_weights_in_the_cache(self, base, cached, model_folder, tmp_path):
        export_torch(model_folder, cached / "memory.safetensors")
        (cached / "model.safetensors").unlink()
        for path, name in (
            (cached, "org/tiny-1.0"),
            (cached / "memory.safetensors", "org/tiny-1.0/memory.safetensors"),
        ):
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            convert(base, tmp_path / "new", torch_path=path, fold=16, **SIZES)
            text = self.texts(tmp_path / "new")
            assert f"distilled in PyTorch, `{name}`" in text
            assert self.COMMIT not in text

    def test_a_gguf_file_in_the_cache(self, base, cached, tmp_path):
        """Which is a link; a repository may have several."""
        save_gguf(base, tmp_path / "blob")
        (cached / "tiny.gguf").symlink_to(tmp_path / "blob")
        convert(cached / "tiny.gguf", tmp_path / "new", window=48)
        card = (tmp_path / "new" / "README.md").read_text()
        assert f"org/tiny-1.0), `tiny.gguf`, commit `{self.COMMIT}` |" in card

    def test_a_plain_folder(self, copy, tmp_path, monkeypatch):
        monkeypatch.chdir(copy)
        convert(".", tmp_path / "new", **SIZES)
        text = self.texts(tmp_path / "new")
        assert "| source | copy |" in text and str(tmp_path) not in text

    @pytest.mark.slow
    def test_advice_can_be_pasted(self, base, tmp_path):
        """Commands of the card, and of a model that is not converted yet."""
        folder = shutil.copytree(base, tmp_path / "it's a base")
        advice = refusal("allmem_mlx convert", of=load, path=folder)
        command = advice.partition(": allmem_mlx ")[2]
        command = command.replace("NEW_FOLDER", "'the model'")
        shell = f'"{sys.executable}" -m allmem_mlx {command} --window 48'
        subprocess.run(shell, shell=True, check=True, cwd=tmp_path, capture_output=True)
        card = (tmp_path / "the model" / "README.md").read_text()
        assert "--model 'the model' --prompt-file" in card
        assert 'load("the model")' in card


class TestAdapters:
    """Whatever is wrong with ``--adapter-path`` is said in a line."""

    FLAG = "--adapter-path: "
    LORA = {"rank": 4, "scale": 10.0, "dropout": 0.0}

    @pytest.fixture
    def adapter(self, model_folder, tmp_path):
        return self.write(tmp_path / "adapter", load(model_folder)[0])

    def write(self, folder, model, layers=2, dora=False, **lora):
        """As ``mlx_lm.lora`` leaves it."""
        folder.mkdir(exist_ok=True)
        lora = {**self.LORA, "keys": ["self_attn.q_proj", "mlp.up_proj"], **lora}
        lora = {name: x for name, x in lora.items() if x is not None}
        model.freeze()
        linear_to_lora_layers(model, layers, lora, use_dora=dora)
        weights = dict(tree_flatten(model.trainable_parameters()))
        weights = {n: mx.random.normal(x.shape) for n, x in weights.items()}
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
        config = {"num_layers": layers, "lora_parameters": lora}
        config["fine_tune_type"] = "dora" if dora else "lora"
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def refused(self, model_folder, adapter, *words):
        options = {"path": model_folder, "adapter_path": str(adapter)}
        message = refusal(*words, of=load, **options)
        assert message.startswith(self.FLAG)

    @pytest.mark.parametrize(
        "options",
        [{}, {"dora": True}, {"layers": 1}, {"keys": None}],
        ids=["lora", "dora", "one layer", "all keys"],
    )
    def test_those_that_fit(self, model_folder, tmp_path, options):
        model, _ = load(model_folder)
        adapter = self.write(tmp_path / "adapter", model, **options)
        weights = mx.load(str(adapter / "adapters.safetensors"))
        adapted, _ = load(model_folder, adapter_path=str(adapter))
        parameters = dict(tree_flatten(adapted.parameters()))
        assert all(mx.array_equal(parameters[name], x) for name, x in weights.items())
        tokens = random_tokens(1, 20)
        plain, _ = load(model_folder)
        assert not mx.allclose(adapted(tokens), plain(tokens))

    def test_those_of_the_base(self, model_folder, tmp_path):
        """Trained on all its layers, before it had a memory."""
        model, _ = load(model_folder)
        adapter = self.write(tmp_path / "adapter", model, keys=None)
        file = adapter / "adapters.safetensors"
        weights = dict(mx.load(str(file)))
        weights = {n: x for n, x in weights.items() if ".memory." not in n}
        mx.eval(weights)
        mx.save_safetensors(str(file), weights)
        load(model_folder, adapter_path=str(adapter))

    def test_nothing_there(self, model_folder, adapter, tmp_path):
        self.refused(model_folder, tmp_path / "nowhere", "nowhere: no such folder")
        file = adapter / "adapters.safetensors"
        self.refused(model_folder, file, file, "no such folder", "mlx_lm.lora")
        file.rename(adapter / "0000100_adapters.safetensors")
        self.refused(model_folder, adapter, "has no adapters.safetensors", "mlx_lm")
        (adapter / "adapter_config.json").unlink()
        self.refused(model_folder, adapter, "has no adapter_config.json", "mlx_lm")

    @pytest.mark.parametrize("text", ["{", "[]", "", '{"num_layers": 2', "\x00"])
    def test_damaged_settings(self, model_folder, adapter, text):
        (adapter / "adapter_config.json").write_text(text)
        self.refused(model_folder, adapter, "adapter_config.json", "mlx_lm.lora")

    @pytest.mark.parametrize(
        "changed, words",
        [
            ({"num_layers": None}, "num_layers is None"),
            ({"num_layers": "two"}, "num_layers is two"),
            ({"lora_parameters": None}, "lora_parameters is None"),
            ({"lora_parameters": {}}, "'scale'"),
            ({"lora_parameters": {"rank": 4, "alpha": 8, "dropout": 0}}, "'scale'"),
            ({"lora_parameters": {**LORA, "rank": "four"}}, "cannot be used"),
        ],
    )
    def test_settings_that_make_no_sense(self, model_folder, adapter, changed, words):
        change = json.loads((adapter / "adapter_config.json").read_text()) | changed
        (adapter / "adapter_config.json").write_text(json.dumps(change))
        self.refused(model_folder, adapter, "adapter_config.json", words, "mlx_lm.lora")

    def test_damaged_weights(self, model_folder, adapter):
        file = adapter / "adapters.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        self.refused(model_folder, adapter, file, "damaged or incomplete")

    @pytest.mark.parametrize(
        "weights",
        ["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"],
    )
    def test_those_of_peft(self, model_folder, tmp_path, weights):
        adapter = tmp_path / "peft"
        adapter.mkdir()
        (adapter / weights).write_bytes(b"")
        if weights != "adapter_model.bin":
            config = json.dumps({"peft_type": "LORA", "r": 8})
            (adapter / "adapter_config.json").write_text(config)
        words = ["PEFT", "merge_and_unload", "allmem_mlx convert"]
        self.refused(model_folder, adapter, adapter, *words)

    def test_another_rank(self, model_folder, adapter):
        file = adapter / "adapter_config.json"
        file.write_text(file.read_text().replace('"rank": 4', '"rank": 8'))
        words = ["lora_", "4", "does not match", "8", ", and 7 more", "trained on"]
        self.refused(model_folder, adapter, *words)

    def test_another_width(self, model_folder, tmp_path):
        other = tiny_base_folder(tmp_path / "other", "llama", hidden_size=96)
        convert(other, tmp_path / "wide", **SIZES)
        adapter = self.write(tmp_path / "adapter", load(tmp_path / "wide")[0])
        self.refused(
            model_folder, adapter, "lora_a", "(96, 4)", "(64, 4)", "trained on"
        )

    @pytest.mark.parametrize("layers", [1, 2, 16])
    def test_other_layers(self, model_folder, tmp_path, layers):
        """More of them than the model has, and fewer."""
        deep = tiny_base_folder(tmp_path / "deep", "llama", num_hidden_layers=3)
        convert(deep, tmp_path / "three", **SIZES)
        model, _ = load(tmp_path / "three")
        adapter = self.write(tmp_path / "a", model, layers=layers)
        self.refused(model_folder, adapter, "model.layers.2.", "trained on")
        model, _ = load(model_folder)
        adapter = self.write(tmp_path / "b", model, layers=max(layers, 2))
        self.refused(tmp_path / "three", adapter, "model.layers.", "trained on")

    def test_other_names(self, model_folder, tmp_path):
        folder = save_checkpoint(tmp_path / "phi3", "phi3")
        convert(folder, tmp_path / "other", window=48)
        model, _ = load(tmp_path / "other")
        adapter = self.write(tmp_path / "a", model, keys=["self_attn.qkv_proj"])
        self.refused(
            model_folder, adapter, "qkv_proj.lora_", "not an adapter parameter"
        )

    def test_the_command(self, model_folder, tmp_path):
        flags = ("--model", model_folder, "--adapter-path", tmp_path, "--prompt", "x")
        result = run("allmem_mlx.generate", *flags)
        assert_refused(result, 1, self.FLAG, "has no adapter_config.json")


class TestTokensWithoutRow:
    """Tokens that were added to a tokenizer, but not to the model."""

    def add(self, folder, *tokens):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(list(tokens))
        tokenizer.save(str(folder / "tokenizer.json"))

    def said(self, capsys) -> list[str]:
        return [x for x in capsys.readouterr().err.splitlines() if "without a row" in x]

    def test_they_are_named(self, model_folder, tmp_path, capsys):
        folder = shutil.copytree(model_folder, tmp_path / "model")
        self.add(folder, "[PAD]")
        model, tokenizer = load(folder)
        assert self.said(capsys) == [
            "[WARNING] the tokenizer has tokens without a row in the embedding: "
            "'[PAD]' (128); they are read as plain text"
        ]
        assert tokens_without_row(tokenizer, 128) == {"[PAD]": 128}
        assert tokens_without_row(tokenizer, 129) == {}

    def test_many(self, copy, tmp_path, capsys):
        """Through a conversion, quantised: rows are not packed."""
        self.add(copy, *(f"<extra_{i}>" for i in range(5)))
        options = {"quantize": True, "q_group_size": 32}
        convert(copy, tmp_path / "new", **options, **SIZES)
        capsys.readouterr()
        _, tokenizer = load(tmp_path / "new")
        (line,) = self.said(capsys)
        assert "'<extra_0>' (128), '<extra_1>' (129), '<extra_2>' (130) and 2" in line
        assert len(tokens_without_row(tokenizer, 128)) == 5

    def test_with_adapters(self, model_folder, tmp_path, capsys):
        """They wrap the embedding."""
        folder = shutil.copytree(model_folder, tmp_path / "model")
        self.add(folder, "[PAD]")
        lora = {"keys": ["model.embed_tokens"]}
        adapter = TestAdapters().write(tmp_path / "a", load(folder)[0], **lora)
        capsys.readouterr()
        load(folder, adapter_path=str(adapter))
        assert len(self.said(capsys)) == 1

    @pytest.mark.parametrize("rows", [128, 129, 192])
    def test_a_padded_vocabulary_is_silent(self, tmp_path, capsys, rows):
        base = tiny_base_folder(tmp_path / "base", "llama", vocab_size=rows)
        convert(base, tmp_path / "new", **SIZES)
        load(tmp_path / "new")
        assert not self.said(capsys)


def quantised(base: Path, folder: Path, **options) -> Path:
    """mlx-lm's folder of a base."""
    options = {"q_group_size": 32, **options}
    mlx_lm_convert(str(base), str(folder), quantize=True, **options)
    return folder
