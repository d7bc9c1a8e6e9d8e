"""A GGUF file (llama.cpp) as a Hugging Face model folder."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .architecture import TENSORS, Architecture, Names
from .families import ARCHITECTURES
from .parts import read_parts
from .recipes import Layer, Recipe, plain
from .rope import FACTORS, rope_parameters, rotated
from .source import Source
from .tokenizer import Vocabulary, end_of_text, write_tokenizer
from .weights import Weight, write_weights

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def _open(path: Path) -> tuple[Source, Architecture]:
    metadata, tensors = read_parts(path)
    source = Source(metadata, tensors)
    if (kind := metadata.get("general.type", str, "model")) != "model":
        raise source.error(f"a GGUF file of type {kind!r} is not a model")
    if source.architecture not in ARCHITECTURES:
        raise source.error(
            f"GGUF architecture {source.architecture!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if EMBEDDING not in tensors:
        raise source.error(f"the GGUF file has no tensor {EMBEDDING}")
    return source, ARCHITECTURES[source.architecture]


# Sizes that a family need not read itself, under their names in ``config.json``.
SIZES: dict[str, Callable[[Source], Any]] = {
    "hidden_size": lambda source: source.get("embedding_length", int),
    "num_hidden_layers": lambda source: source.layers,
    "intermediate_size": lambda source: source.common("feed_forward_length"),
    "num_attention_heads": lambda source: source.get("attention.head_count", int),
    "num_key_value_heads": lambda source: source.common(
        "attention.head_count_kv", source.get("attention.head_count", int)
    ),
    "head_dim": lambda source: source.head_dim,
    "max_position_embeddings": lambda source: source.get("context_length", int),
    "rope_parameters": rope_parameters,
}


def read_config(
    source: Source, family: Architecture, vocabulary: Vocabulary
) -> dict[str, Any]:
    """The ``config.json`` of the model, in the form of transformers.

    Args:
        source (Source): the file.
        family (Architecture): its family.
        vocabulary (Vocabulary): its tokens.

    Raises:
        AllMemError: if a setting is missing, impossible or not supported.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if rotated(source) != 1.0 and not family.partial:
        raise source.error("rope.dimension_count: partial RoPE is not supported")
    rows, tokens = source.tensors[EMBEDDING].rows, len(vocabulary.tokens)
    if tokens > rows:
        raise source.error(f"{EMBEDDING} has {rows} rows for {tokens} tokens")
    own = family.settings(source)
    config = {
        "model_type": family.model_type,
        "vocab_size": rows,
        "tie_word_embeddings": OUTPUT not in source.tensors,
        "bos_token_id": vocabulary.id("bos"),
        "eos_token_id": end_of_text(vocabulary),
        **{name: read(source) for name, read in SIZES.items() if name not in own},
        **own,
    }
    source.check_unused()
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]
    return {**config, "architectures": [name]}


def _halves(x: np.ndarray, size: int, columns: int) -> np.ndarray:
    """Rows of heads in transformers' order: llama.cpp rotates neighbours together,
    transformers the first half of a head with the second."""
    return x.reshape(-1, size // 2, 2, columns).swapaxes(1, 2).reshape(x.shape)


def _subtract(x: np.ndarray, offset: float) -> np.ndarray:
    return x - np.float32(offset)


def read_weights(
    source: Source, family: Architecture
) -> tuple[list[Weight], list[str]]:
    """The model's parameters, under their names in transformers, and the names of
    tensors that are of no use.

    Args:
        source (Source): the file.
        family (Architecture): its family.

    Raises:
        AllMemError: if there is a tensor that has no place in the model.
    """
    names = TENSORS | family.tensors
    layers: dict[str | None, Layer] = {None: Layer(source)}
    weights, left_out = [], []
    for whole_name, tensor in source.tensors.items():
        if whole_name == FACTORS:
            continue  # in the configuration
        number, name = None, whole_name
        if match := re.match(r"blk\.([0-9]+)\.", whole_name):
            number, name = match[1], whole_name[match.end() :]
        if number is not None and int(number) >= source.layers:
            left_out.append(whole_name)  # it predicts further tokens
            continue
        if number not in layers:
            place = f"{family.layers}.{number}."
            layers[number] = Layer(source, f"blk.{number}.", place)
        layer = layers[number]
        if whole_name in layer.used:
            continue
        if (recipe := _recipe(names, name)) is None:
            # A recipe may take it that comes later.
            layer.waiting.add(whole_name)
            continue
        found = recipe(layer, tensor)
        weights += [_changed(weight, name, source, family) for weight in found]
    for layer in layers.values():
        for name in layer.waiting - layer.used:
            raise source.error(f"tensor {name} is not supported")
    return weights, left_out


def _recipe(names: Names, name: str) -> Recipe | None:
    """What a family makes of a tensor, given its name without the layer."""
    recipe = names.get(name)
    if recipe is None:
        stem, _, kind = name.rpartition(".")
        module = names.get(stem)
        if not isinstance(module, str) or kind not in ("weight", "bias"):
            return None
        recipe = f"{module}.{kind}"
    return plain(recipe) if isinstance(recipe, str) else recipe


def _changed(weight: Weight, name: str, source: Source, family: Architecture) -> Weight:
    """A parameter without the changes that llama.cpp makes to many families' weights.

    Args:
        weight (Weight): the parameter.
        name (str): its tensor's name without the layer.
        source (Source): the file.
        family (Architecture): its family.
    """
    stem, _, kind = name.rpartition(".")
    tensor, size = weight.tensor, source.head_dim
    if family.interleaved and stem in ("attn_q", "attn_k"):
        vector = len(tensor.shape) == 1
        if (tensor.columns if vector else tensor.rows) % size or size % 2:
            raise source.error(
                f"tensor {tensor.name} is not made of heads of {size} rows"
            )
        columns = 1 if vector else tensor.columns
        transform = partial(_halves, size=size, columns=columns)
        return replace(weight, group=1 if vector else size, transform=transform)
    if (
        family.norm_offset
        and "norm" in stem
        and stem != "ssm_norm"
        and kind == "weight"
    ):
        return replace(weight, transform=partial(_subtract, offset=family.norm_offset))
    return weight


def _dtype(source: Source, family: Architecture) -> str:
    """The type of the weights, or one that suits a quantised file."""
    kind = source.tensors[EMBEDDING].kind.name
    return {"F32": "float32", "BF16": "bfloat16"}.get(kind, family.dtype)


def unpack(path: Path, folder: Path, dtype: str | None = None) -> list[str]:
    """Writes the model in a GGUF file as a Hugging Face folder.

    Args:
        path (Path): the GGUF file, or any part of a model in several.
        folder (Path): an existing folder to write to.
        dtype (str): type of the weights. Default: the file's; for a quantised file
            float16, or bfloat16 for a family that overflows in float16.

    Returns:
        list: names of tensors that are left out; they predict further tokens.

    Raises:
        AllMemError: if the file is not GGUF, is damaged, or holds a model, a tensor
            or a tokenizer that is not supported, or if a part is missing.
    """
    source, family = _open(path)
    vocabulary = Vocabulary(source)
    config = read_config(source, family, vocabulary)
    weights, left_out = read_weights(source, family)
    dtype = dtype or _dtype(source, family)
    write_tokenizer(vocabulary, folder)
    config["torch_dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(weights, folder, getattr(mx, dtype))
    return left_out
