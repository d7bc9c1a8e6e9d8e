"""Memory weights from PyTorch and back: trained, in every layout, and refused."""

import hashlib
import json
import resource
import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
from gguf_files import save_gguf
from helpers import (
    TINY_ALLMEM,
    TINY_BASE,
    assert_close,
    assert_refused,
    random_tokens,
    relative_error,
    tiny_base_folder,
    tiny_model,
)
from mlx.utils import tree_flatten
from oracle import HybridAttention
from processes import run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from allmem_mlx import load
from allmem_mlx.config import AllMemConfig
from allmem_mlx.convert import convert, torch_names
from allmem_mlx.convert.torch_export import export_torch
from allmem_mlx.distillation.documents import Document
from allmem_mlx.distillation.torch.hybrid import Hybrid, State, View
from allmem_mlx.distillation.torch.loss import segment_losses
from allmem_mlx.errors import AllMemError, SettingError

CONFIG = AllMemConfig(**TINY_ALLMEM)
VIEW = View(CONFIG.window, CONFIG.sinks, CONFIG.chunk, memory=True)
SIZES = {name: TINY_ALLMEM[name] for name in ("window", "sinks", "chunk", "fold")}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def trained(request, tmp_path_factory):
    """A base model's folder, and its hybrid after a few steps of distillation."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    tiny_base_folder(folder, request.param, initializer_range=0.3)
    torch.manual_seed(0)
    hybrid = hybrid_of(folder, CONFIG)
    parameters = hybrid.parameters().values()
    optimizer = torch.optim.Adam(parameters, lr=3e-2, eps=1e-10)
    for tokens in torch.randint(0, 128, (5, 160)).tolist():
        segment = Document(tokens).whole()
        losses, _ = segment_losses(hybrid, [segment], VIEW, State())
        losses.text.backward()
        optimizer.step()
        optimizer.zero_grad()
    return folder, hybrid


def hybrid_of(folder, config: AllMemConfig) -> Hybrid:
    """A base model with a fresh memory in each layer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Hybrid(model, config)


def torch_logits(hybrid, tokens) -> np.ndarray:
    with torch.no_grad():
        hidden = hybrid.hidden(torch.tensor(np.array(tokens)), VIEW)
        return hybrid.model.lm_head(hidden).numpy()


def test_a_trained_memory(trained, tmp_path):
    """Six chunks and a half, four of them beyond the window."""
    base, hybrid = trained
    save_file(dict(hybrid.parameters()), tmp_path / "m.safetensors")
    convert(base, tmp_path / "new", torch_path=tmp_path / "m.safetensors", **SIZES)
    ours, _ = load(tmp_path / "new")
    tokens = random_tokens(1, 208)
    expected = torch_logits(hybrid, tokens)
    assert_close("logits", ours(tokens), expected, 1e-5)
    for layer in ours.layers:
        assert mx.abs(layer.self_attn.alpha).mean() > 1e-2
        layer.self_attn.alpha *= 0
    assert relative_error(ours(tokens), expected) > 1e-2
    assert "distilled in PyTorch" in (tmp_path / "new" / "README.md").read_text()


def test_names_and_shapes_are_those_of_the_layers():
    """Of the PyTorch layer, of the MLX layer, and of the documentation."""
    shapes = torch_names.shapes(64, CONFIG)
    base = {**TINY_BASE, "model_type": "llama"}
    theirs = HybridAttention(base, CONFIG).state_dict()
    ours = dict(tree_flatten(tiny_model().layers[0].self_attn.parameters()))
    for layer in (theirs, ours):
        own = {name: x for name, x in layer.items() if name.startswith(("mem", "alph"))}
        assert set(own) == set(torch_names.PARAMETERS)
        for name, x in own.items():
            assert shapes[name] == tuple(x.shape), name
    parts = {x for layouts in torch_names.PARTS.values() for y in layouts for x in y}
    assert shapes.keys() == parts | set(torch_names.PARAMETERS)
    for whole, layouts in torch_names.PARTS.items():
        for layout in layouts:
            rows = sum(shapes[name][0] for name in layout)
            assert (rows, *shapes[layout[0]][1:]) == (
                shapes[whole][0],
                *([1] if "conv" in whole else []),
                *shapes[whole][1:],
            )
    for name in shapes:
        assert name.removeprefix("memory.") in torch_names.__doc__, name


def test_names_and_shapes_of_token_values():
    config = AllMemConfig(**{**vars(CONFIG), "values": "token"})
    shapes = torch_names.shapes(64, config)
    model = tiny_model(values="token")
    ours = dict(tree_flatten(model.layers[0].self_attn.parameters()))
    own = {name: x.shape for name, x in ours.items() if name.startswith(("mem", "al"))}
    assert own == {name: shapes[name] for name in torch_names.parameters("token")}
    for whole, layouts in torch_names.TOKEN_PARTS.items():
        for layout in layouts:
            rows = sum(shapes[name][0] for name in layout)
            assert rows == shapes[whole][0], whole


@pytest.mark.parametrize("write", ["whole", "parts"])
def test_token_values_of_the_last_layers(base, tmp_path, write):
    """There and back, whole and in parts; what the names do not tell is told."""
    width, n = CONFIG.heads * CONFIG.head_dim, CONFIG.heads
    given = {"values": "token", "layers": [-1]}
    convert(base, tmp_path / "a", **vars(CONFIG) | given)
    export_torch(tmp_path / "a", tmp_path / "w")
    tensors = load_file(tmp_path / "w" / "memory.safetensors")
    assert {name.split(".")[2] for name in tensors} == {"1"}
    parts = dict(tensors)
    if write == "parts":
        name = "model.layers.1.self_attn.memory."
        rows = parts.pop(name + "in_proj.weight").split([width, width, 3 * n, n, n])
        for part, x in zip(("q", "k", "lr", "momentum", "gate"), rows, strict=True):
            parts[f"{name}{part}_proj.weight"] = x.clone()
        parts[name + "v_proj.weight"] = parts.pop(name + "value_proj.weight")
    save_file(parts, tmp_path / "m.safetensors")
    convert(base, tmp_path / "b", torch_path=tmp_path / "m.safetensors", **given)
    again, _ = load(tmp_path / "b")
    again = dict(tree_flatten(again.parameters()))
    for name, x in tensors.items():
        assert np.array_equal(np.array(again[name].astype(mx.float32)), x.float())


def memory_tensors(seed: int = 0, dtype=torch.float32, layers: int = 2) -> dict:
    """A memory of random values, as the reference's state_dict has it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch_names.shapes(64, CONFIG)
    return {
        f"model.layers.{layer}.self_attn.{name}": torch.randn(
            shapes[name], generator=generator
        ).to(dtype)
        for layer in range(layers)
        for name in torch_names.PARAMETERS
    }


def fingerprint(tensors: dict) -> str:
    """A hash over names, types, shapes and every bit."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split(tensors: dict, qkv: bool = False, conv1d: bool = False) -> dict:
    """Every parameter that can come in parts, in parts."""
    n, width = CONFIG.heads, CONFIG.heads * CONFIG.head_dim
    out = {}
    for name, x in tensors.items():
        stem, _, kind = name.partition("memory.")
        if kind == "in_proj.weight":
            cut = [3 * width] if qkv else [width] * 3
            parts = x.split([*cut, 3 * n, n, n])
            names = ["qkv"] if qkv else [*"qkv"]
            names += ["lr", "momentum", "gate"]
            for part, rows in zip(names, parts, strict=True):
                out[f"{stem}memory.{part}_proj.weight"] = rows
        elif kind == "rate_bias":
            parts = x.split([3 * n, n, n])
            for part, rows in zip(("lr", "momentum", "gate"), parts, strict=True):
                out[f"{stem}memory.{part}_proj.bias"] = rows
        elif kind == "conv_weight" and conv1d:
            out[f"{stem}memory.conv1d.weight"] = x[:, None]
        elif kind == "conv_weight":
            for part, rows in zip("qkv", x[:, None].chunk(3), strict=True):
                out[f"{stem}memory.conv_{part}.weight"] = rows
        else:
            out[name] = x
    return {name: x.clone() for name, x in out.items()}


def prefixed(tensors: dict, prefix: str) -> dict:
    return {prefix + name: x for name, x in tensors.items()}


def inside(tensors: dict, wrapper: str) -> dict:
    """As activation checkpointing and FSDP name parameters of wrapped layers."""
    return {name.replace(".self", f".{wrapper}.self"): x for name, x in tensors.items()}


def shards(folder, tensors: dict, save, name: str) -> None:
    """Two files and their index."""
    names, files = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        stem, suffix = name.split(".", 1)
        file = f"{stem}-0000{i + 1}-of-00002.{suffix}"
        save({x: tensors[x] for x in part}, folder / file)
        files |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / f"{name}.index.json").write_text(index)


def flat(tensors: dict) -> dict:
    """Every tensor a view of one, as optimizers that shard leave them."""
    whole = torch.cat([x.flatten() for x in tensors.values()])
    parts = whole.split([x.numel() for x in tensors.values()])
    named = zip(tensors.items(), parts, strict=True)
    return {name: part.view(x.shape) for (name, x), part in named}


def legacy(tensors, file) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


# How a folder of weights is written.
LAYOUTS = {
    "safetensors": lambda f, x: save_file(x, f / "memory.safetensors"),
    "pt": lambda f, x: torch.save(x, f / "memory.pt"),
    "pth before 1.6": lambda f, x: legacy(x, f / "memory.pth"),
    "bin of parameters": lambda f, x: torch.save(
        {name: torch.nn.Parameter(y) for name, y in x.items()}, f / "m.bin"
    ),
    "shards": lambda f, x: shards(f, x, save_file, "model.safetensors"),
    "pickled shards": lambda f, x: shards(f, x, torch.save, "pytorch_model.bin"),
    "in parts": lambda f, x: save_file(split(x), f / "memory.safetensors"),
    "qkv and conv1d": lambda f, x: save_file(
        split(x, qkv=True, conv1d=True), f / "memory.safetensors"
    ),
    "views of one storage": lambda f, x: torch.save(flat(x), f / "m.pt"),
    "DeepSpeed": lambda f, x: torch.save(
        {"module": prefixed(x, "module."), "optimizer": {"step": torch.ones(3)}},
        f / "mp_rank_00_model_states.pt",
    ),
    "Lightning": lambda f, x: torch.save(
        {"state_dict": prefixed(x, "model."), "epoch": 3, "loops": {"a": 1}},
        f / "last.pt",
    ),
    "trainer": lambda f, x: torch.save(
        {"model_state_dict": {"model": x}, "loss": 0.5}, f / "m.pth"
    ),
    "compiled": lambda f, x: save_file(
        prefixed(x, "_orig_mod."), f / "memory.safetensors"
    ),
    "PEFT": lambda f, x: save_file(
        prefixed(x, "base_model.model."), f / "adapter_model.safetensors"
    ),
    "wrapped in wrappers": lambda f, x: save_file(
        inside(
            prefixed(x, "module._orig_mod._fsdp_wrapped_module."),
            "_checkpoint_wrapped_module._orig_mod",
        ),
        f / "memory.safetensors",
    ),
    "beside a vision tower": lambda f, x: save_file(
        prefixed(
            {name.removeprefix("model."): y for name, y in x.items()},
            "model.language_model.",
        ),
        f / "model.safetensors",
    ),
    "one layer a file": lambda f, x: [
        save_file(
            {name: y for name, y in x.items() if f".{layer}." in name},
            f / f"layer-{layer}.safetensors",
        )
        for layer in range(2)
    ],
    "no prefix": lambda f, x: save_file(
        {name.removeprefix("model."): y for name, y in x.items()},
        f / "memory.safetensors",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base_folder(tmp_path_factory.mktemp("base"), "qwen3")


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_there_and_back_to_the_bit(base, tmp_path, write):
    tensors = memory_tensors()
    (tmp_path / "weights").mkdir()
    write(tmp_path / "weights", tensors)
    convert(base, tmp_path / "new", torch_path=tmp_path / "weights", **SIZES)
    export_torch(tmp_path / "new", tmp_path / "back.safetensors")
    expected = fingerprint(tensors)
    assert fingerprint(load_file(tmp_path / "back.safetensors")) == expected
    export_torch(tmp_path / "new", tmp_path / "back.pt")
    assert fingerprint(torch.load(tmp_path / "back.pt")) == expected


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(base, tmp_path, dtype, suffix):
    """What our precision rules keep in float32 comes back in it, of the same value;
    the rest to the bit."""
    tensors = memory_tensors(dtype=dtype)
    file = tmp_path / f"memory.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(tensors, file)
    name = str(dtype).removeprefix("torch.")
    convert(base, tmp_path / "new", torch_path=file, dtype=name)
    for back in (tmp_path / "back.bin", tmp_path / "back.safetensors"):
        export_torch(tmp_path / "new", back)
        found = torch.load(back) if back.suffix == ".bin" else load_file(back)
        kept = ("in_proj.weight", "conv_weight", "o_proj.weight")
        for name in tensors:
            follows = name.endswith(kept)
            assert found[name].dtype == (dtype if follows else torch.float32)
            found[name] = found[name].to(dtype)
        assert fingerprint(found) == fingerprint(tensors)


def test_what_is_exported_loads_into_the_trainer(trained, tmp_path):
    base, hybrid = trained
    save_file(dict(hybrid.parameters()), tmp_path / "m.safetensors")
    convert(base, tmp_path / "new", torch_path=tmp_path / "m.safetensors", **SIZES)
    export_torch(tmp_path / "new", tmp_path / "back")
    block = json.loads((tmp_path / "back" / "config.json").read_text())["allmem"]
    again = hybrid_of(base, AllMemConfig.from_dict(block))
    found = load_file(tmp_path / "back" / "memory.safetensors")
    assert not again.model.load_state_dict(found, strict=False).unexpected_keys
    tokens = random_tokens(1, 100)
    assert np.array_equal(torch_logits(again, tokens), torch_logits(hybrid, tokens))
    # And from the folder, whose config.json has the sizes.
    convert(base, tmp_path / "twice", torch_path=tmp_path / "back")
    assert load(tmp_path / "twice")[0].allmem == CONFIG


def base_tensors(folder) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: x.clone() + 0.01 for name, x in model.state_dict().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_base_and_memory_in_one(tmp_path, tied):
    """The checkpoint's base is used, whichever name its tied head has."""
    base = tiny_base_folder(tmp_path / "base", "llama", tie_word_embeddings=tied)
    other = tiny_base_folder(tmp_path / "o", "llama", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with torch.no_grad():
        for x in model.parameters():
            x += 0.01
    model.save_pretrained(other)
    whole = memory_tensors() | {x: y.clone() for x, y in model.state_dict().items()}
    whole["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(memory_tensors(), tmp_path / "memory.safetensors")
    convert(other, tmp_path / "expected", torch_path=tmp_path / "memory.safetensors")
    expected = mx.load(str(tmp_path / "expected" / "model.safetensors"))

    variants = [whole, prefixed(whole, "module.")]
    if tied:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            variants.append({x: y for x, y in whole.items() if x != name})
    for i, tensors in enumerate(variants):
        save_file(tensors, tmp_path / f"{i}.safetensors")
        convert(base, tmp_path / f"{i}", torch_path=tmp_path / f"{i}.safetensors")
        found = mx.load(str(tmp_path / f"{i}" / "model.safetensors"))
        assert found.keys() == expected.keys()
        assert all(mx.array_equal(found[x], expected[x]) for x in found)

    refused = [
        (["model.norm.weight"], {}, "not model.norm.weight; it must have all or none"),
        ([], {"model.norm.weight": torch.ones(65)}, r"model.norm.weight is \[65\]"),
        ([], {"model.norm.weight": torch.zeros(64) / 0}, "model.norm.weight holds NaN"),
        ([], {"model.norm.weight": torch.ones(64).double()}, "F64"),
    ]
    if tied:
        head = {"lm_head.weight": torch.zeros(128, 64)}
        refused.append(([], head, "no head of its own"))
    else:
        refused.append((["lm_head.weight"], {}, "not lm_head.weight"))
    for i, (removed, added, words) in enumerate(refused):
        tensors = {x: y for x, y in whole.items() if x not in removed} | added
        save_file(tensors, tmp_path / f"bad-{i}.safetensors")
        with pytest.raises(AllMemError, match=words):
            convert(
                base, tmp_path / "new", torch_path=tmp_path / f"bad-{i}.safetensors"
            )
    assert not (tmp_path / "new").exists()


def test_gguf_and_quantised(base, tmp_path):
    save_file(memory_tensors(), tmp_path / "m.safetensors")
    save_gguf(base, tmp_path / "tiny.gguf")
    for name, source, options in (
        ("gguf", tmp_path / "tiny.gguf", {}),
        ("q", base, {"quantize": True, "q_group_size": 32}),
    ):
        torch_path = tmp_path / "m.safetensors"
        convert(
            source, tmp_path / name, torch_path=torch_path, dtype="float32", **options
        )
        export_torch(tmp_path / name, tmp_path / f"{name}.safetensors")
        found = load_file(tmp_path / f"{name}.safetensors")
        assert fingerprint(found) == fingerprint(memory_tensors())
    assert "model.layers.0.self_attn.q_proj.scales" in mx.load(
        str(tmp_path / "q" / "model.safetensors")
    )


def test_a_checkpoint_with_its_base_on_a_quantised_base(base, tmp_path):
    from mlx_lm.convert import convert as mlx_lm_convert

    quantised = tmp_path / "quantised"
    mlx_lm_convert(str(base), str(quantised), quantize=True, q_group_size=32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = memory_tensors() | {x: y.clone() for x, y in model.state_dict().items()}
    save_file(whole, tmp_path / "whole.safetensors")
    with pytest.raises(AllMemError, match="a base that is not quantised"):
        convert(quantised, tmp_path / "q", torch_path=tmp_path / "whole.safetensors")


def test_settings_of_a_config_beside_the_weights(base, tmp_path):
    """They are the defaults; what is given wins; sizes are the tensors'."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(memory_tensors(), folder / "memory.safetensors")
    block = {"window": 40, "chunk": 16, "fold": 8, "learning_rate": 0.3}
    (folder / "config.json").write_text(json.dumps({"allmem": block}))
    for name, path, given in (
        ("folder", folder, {}),
        ("file", folder / "memory.safetensors", {"window": 24, "max_update_norm": 2.0}),
    ):
        convert(base, tmp_path / name, torch_path=path, **given)
        config = load(tmp_path / name)[0].allmem
        sizes = {"heads": 2, "head_dim": 16, "hidden_dim": 32, "conv_kernel": 4}
        assert config == AllMemConfig(**{**sizes, **block, **given})


def memory(name: str, layer: int = 0) -> str:
    return f"model.layers.{layer}.self_attn.memory.{name}"


def without(x: dict, *names: str) -> dict:
    return {name: y for name, y in x.items() if name not in names}


ALPHA = "model.layers.1.self_attn.alpha"
# A folder of weights that is refused, and what the message must name.
REFUSED = {
    "a layer too many": (lambda x: memory_tensors(layers=3), ["layers.2", "0 to 1"]),
    "a layer too few": (lambda x: memory_tensors(layers=1), ["layers.1", "0 to 1"]),
    "no memory": (lambda x: {"a": torch.ones(1)}, ["no memory"]),
    "no alpha": (lambda x: without(x, ALPHA), [ALPHA, "missing"]),
    "no w0_gate": (lambda x: without(x, memory("w0_gate")), [memory("w0_gate")]),
    "no taps": (lambda x: without(x, memory("conv_weight")), ["conv_weight"]),
    "no v of qkv": (
        lambda x: without(split(x), memory("v_proj.weight")),
        [memory("v_proj.weight"), "missing"],
    ),
    "no bias of the rates": (
        lambda x: without(split(x), memory("lr_proj.bias", 1)),
        [memory("lr_proj.bias", 1), "missing"],
    ),
    "whole and in parts": (
        lambda x: x | {memory("gate_proj.weight"): torch.ones(2, 64)},
        [memory("gate_proj.weight"), "another layout"],
    ),
    "an unknown tensor": (
        lambda x: x | {memory("beta"): torch.ones(1)},
        [memory("beta"), "looks like"],
    ),
    "a memory without a layer": (
        lambda x: x | {"model.memory.w0_gate": torch.ones(1)},
        ["model.memory.w0_gate", "looks like"],
    ),
    "twice": (
        lambda x: x | {f"module.{ALPHA}": torch.ones(64)},
        [f"module.{ALPHA}", ALPHA, "same parameter"],
    ),
    "another width": (
        lambda x: x | {ALPHA: torch.ones(65)},
        [ALPHA, "[65]", "[64]", "model of width 64"],
    ),
    "heads that differ": (
        lambda x: x | {memory("w0_up", 1): torch.ones(3, 32, 16)},
        [memory("w0_up", 1), "[3, 32, 16]", "[2, 32, 16]"],
    ),
    "taps that differ": (
        lambda x: x | {memory("conv_weight", 1): torch.ones(96, 3)},
        [memory("conv_weight", 1), "[96, 3]", "[96, 4]"],
    ),
    "a flat w0_gate": (
        lambda x: x | {memory("w0_gate"): torch.ones(1024)},
        [memory("w0_gate"), "[1024]", "3 dimensions"],
    ),
    "no heads": (
        lambda x: x | {memory("w0_gate"): torch.ones(0, 32, 16)},
        ["heads is 0"],
    ),
    "NaN": (
        lambda x: x | {ALPHA: torch.full((64,), float("nan"))},
        [ALPHA, "NaN or infinite"],
    ),
    "infinite": (
        lambda x: x | {ALPHA: torch.full((64,), float("inf"))},
        [ALPHA, "NaN or infinite"],
    ),
    "whole numbers": (
        lambda x: x | {ALPHA: torch.ones(64, dtype=torch.int32)},
        [ALPHA, "float32, float16 or bfloat16", "int32"],
    ),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("change, words", REFUSED.values(), ids=REFUSED)
def test_refused(base, tmp_path, suffix, change, words):
    file = tmp_path / f"memory.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(change(memory_tensors()), file)
    with pytest.raises(AllMemError) as error:
        convert(base, tmp_path / "new", torch_path=file)
    for word in [file, *words]:
        assert str(word) in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_is_left_out_is_told_of_in_the_end(base, tmp_path, capsys):
    """A refusal is one line, whatever else the checkpoint has."""
    tensors = {**memory_tensors(layers=3), "model.extra": torch.ones(1)}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(AllMemError, match="layers.2"):
        convert(base, tmp_path / "new", torch_path=tmp_path / "m.safetensors")
    assert not capsys.readouterr().err


def edited(file, **block):
    file.write_text(json.dumps({"allmem": block}))


def index(folder, text: str) -> None:
    (folder / "memory.safetensors").rename(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


class Config:
    """Something a pickle of a whole model would hold."""


FOLDERS = {
    "empty": (lambda f: (f / "memory.safetensors").unlink(), ["no weights"]),
    "two pickles": (
        lambda f: [
            (f / "memory.safetensors").unlink(),
            (f / "a.pt").touch(),
            (f / "b.pt").touch(),
        ],
        ["several", "a.pt, b.pt"],
    ),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        ["config.json", "cannot be read"],
    ),
    "allmem settings of another type": (
        lambda f: (f / "config.json").write_text('{"allmem": 3}'),
        ["config.json", "object"],
    ),
    "an unknown setting": (
        lambda f: edited(f / "config.json", widow=3),
        ["config.json", "widow"],
    ),
    "other heads": (
        lambda f: edited(f / "config.json", heads=3),
        ["config.json", "heads is 3", "it is 2"],
    ),
    "index not JSON": (lambda f: index(f, "{"), ["index.json"]),
    "index without a map": (lambda f: index(f, "{}"), ["index.json", "weight_map"]),
    "a shard is missing": (
        lambda f: index(f, '{"weight_map": {"a": "b.safetensors"}}'),
        ["index.json", "b.safetensors", "not in its folder"],
    ),
    "a shard elsewhere": (
        lambda f: index(f, '{"weight_map": {"a": "../base/model.safetensors"}}'),
        ["index.json", "../base/model.safetensors"],
    ),
    "a whole model": (
        lambda f: [
            (f / "memory.safetensors").unlink(),
            torch.save({"model": Config()}, f / "model.pt"),
        ],
        ["model.pt", "state_dict()"],
    ),
    "a list": (
        lambda f: [
            (f / "memory.safetensors").unlink(),
            torch.save([torch.ones(1)], f / "model.pt"),
        ],
        ["model.pt", "dictionary"],
    ),
}


@pytest.mark.parametrize("damage, words", FOLDERS.values(), ids=FOLDERS)
def test_refused_folders(base, tmp_path, damage, words):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(memory_tensors(), folder / "memory.safetensors")
    damage(folder)
    with pytest.raises(AllMemError) as error:
        convert(base, tmp_path / "new", torch_path=folder)
    for word in [folder, *words]:
        assert str(word) in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_size_that_the_weights_do_not_have(base, tmp_path):
    save_file(memory_tensors(), tmp_path / "m.safetensors")
    with pytest.raises(SettingError, match="heads is 3.*it is 2"):
        convert(base, tmp_path / "new", torch_path=tmp_path / "m.safetensors", heads=3)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from allmem_mlx.convert import convert
from allmem_mlx.convert.torch_export import export_torch
from allmem_mlx.errors import AllMemError

convert("base", "new", torch_path="m.safetensors")
export_torch("new", "back.safetensors")
for attempt in (
    lambda: convert("base", "other", torch_path="m.pt"),
    lambda: export_torch("new", "back.pt"),
):
    try:
        attempt()
    except AllMemError as error:
        print(error)
"""


def test_without_pytorch(base, tmp_path):
    """Safetensors need none; of a pickle, one line says so."""
    save_file(memory_tensors(), tmp_path / "m.safetensors")
    torch.save(memory_tensors(), tmp_path / "m.pt")
    shutil.copytree(base, tmp_path / "base")
    result = run("-c", WITHOUT_TORCH, cwd=tmp_path, fresh=True)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().splitlines() == [
        "m.pt needs PyTorch: pip install 'allmem-mlx[torch]'",
        "back.pt needs PyTorch: pip install 'allmem-mlx[torch]'",
    ]
    assert not {"other", "back.pt"} & {path.name for path in tmp_path.iterdir()}


def test_the_commands(base, tmp_path):
    """There, with what was left out, and back."""
    optimizer = {"state": {0: torch.ones(3)}}
    whole = {"model": memory_tensors(), "optimizer": optimizer}
    whole["model"] |= {f"model.extra.{i}": torch.ones(1) for i in range(9)}
    torch.save(whole, tmp_path / "m.pt")
    new, back = tmp_path / "new", tmp_path / "back.safetensors"
    to = ["--hf-path", base, "--mlx-path", new]
    result = run("convert", *to, "--torch-path", tmp_path / "m.pt")
    assert result.returncode == 0, result.stderr
    message = result.stderr.decode()
    assert message.count("\n") == 1 and message.startswith("[WARNING] left out")
    assert "optimizer" in message
    assert "model.extra.0" in message and "7 more" in message
    result = run("convert", "--model", new, "--export-torch", back)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert fingerprint(load_file(back)) == fingerprint(memory_tensors())

    flags = ["--model", new, "--export-torch", back]
    assert_refused(run("convert", *flags), 1, back, "already exists")
    assert_refused(run("convert", *flags, "-q"), 2, "--quantize")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"back.safetensors", "m.pt", "new"}


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m"])
def test_an_export_to_a_full_disk_leaves_nothing(base, tmp_path, name):
    """A limit on the size of files stands in for it."""
    convert(base, tmp_path / "new")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(AllMemError, match=rf"/{name} cannot be written: .*\w"):
            export_torch(tmp_path / "new", tmp_path / "folder" / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_refused_paths(base, tmp_path):
    refused = [
        (lambda: convert(base, tmp_path / "new", torch_path="x.pt"), "no such file"),
        (
            lambda: convert(base, tmp_path / "new", torch_path=base / "tokenizer.json"),
            "tokenizer.json: weights end in .safetensors, .pt",
        ),
        (lambda: export_torch(base, tmp_path / "m.pt"), "is not an AllMem model"),
        (lambda: export_torch(tmp_path, tmp_path / "m.pt"), "no config.json"),
    ]
    for attempt, words in refused:
        with pytest.raises(AllMemError, match=words):
            attempt()
    assert not any(tmp_path.iterdir())
