"""A GGUF file (llama.cpp) as a Hugging Face model folder."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .families import ARCHITECTURES, TENSORS, Architecture
from .file import read_header
from .rope import FACTORS, rope_parameters, rotated
from .source import Source
from .tokenizer import Vocabulary, end_of_text, write_tokenizer
from .weights import Weight, write_weights

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def _open(path: Path) -> tuple[Source, Architecture]:
    metadata, tensors = read_header(path)
    source = Source(metadata, tensors)
    if (kind := metadata.get("general.type", str, "model")) != "model":
        raise source.error(f"a GGUF file of type {kind!r} is not a model")
    if (count := metadata.get("split.count", int, 1)) > 1:
        raise source.error(
            f"one of {count} parts; join them with llama-gguf-split --merge"
        )
    if source.architecture not in ARCHITECTURES:
        raise source.error(
            f"GGUF architecture {source.architecture!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if EMBEDDING not in tensors:
        raise source.error(f"the GGUF file has no tensor {EMBEDDING}")
    return source, ARCHITECTURES[source.architecture]


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

    heads = source.get("attention.head_count", int)
    if rotated(source) != 1.0 and not family.partial:
        raise source.error("rope.dimension_count: partial RoPE is not supported")
    rows, tokens = source.tensors[EMBEDDING].rows, len(vocabulary.tokens)
    if tokens > rows:
        raise source.error(f"{EMBEDDING} has {rows} rows for {tokens} tokens")
    config = {
        "model_type": family.model_type,
        "hidden_size": source.get("embedding_length", int),
        "num_hidden_layers": source.layers,
        "intermediate_size": source.get("feed_forward_length", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get("attention.head_count_kv", int, heads),
        "head_dim": source.head_dim,
        "vocab_size": rows,
        "max_position_embeddings": source.get("context_length", int),
        "rope_parameters": rope_parameters(source),
        "tie_word_embeddings": OUTPUT not in source.tensors,
        "bos_token_id": vocabulary.id("bos"),
        "eos_token_id": end_of_text(vocabulary),
        **family.settings(source),
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


def read_weights(source: Source, family: Architecture) -> list[Weight]:
    """The model's parameters, under their names in transformers.

    Args:
        source (Source): the file.
        family (Architecture): its family.

    Raises:
        AllMemError: if there is a tensor that has no place in the model.
    """
    names = TENSORS | family.tensors
    size = source.head_dim
    weights = []
    for name, tensor in source.tensors.items():
        if name == FACTORS:
            continue  # in the configuration
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in names:
            raise source.error(f"tensor {name} is not supported")
        layer, stem, kind = match.groups()
        prefix = f"model.layers.{layer}." if layer else ""
        weight = Weight(f"{prefix}{names[stem]}.{kind}", tensor)
        if family.interleaved and stem in ("attn_q", "attn_k"):
            vector = len(tensor.shape) == 1
            if (tensor.columns if vector else tensor.rows) % size or size % 2:
                raise source.error(f"tensor {name} is not made of heads of {size} rows")
            columns = 1 if vector else tensor.columns
            transform = partial(_halves, size=size, columns=columns)
            weight = replace(weight, group=1 if vector else size, transform=transform)
        if family.norm_offset and "norm" in stem and kind == "weight":
            transform = partial(_subtract, offset=family.norm_offset)
            weight = replace(weight, transform=transform)
        weights.append(weight)
    return weights


def _dtype(source: Source, family: Architecture) -> str:
    """The type of the weights, or one that suits a quantised file."""
    kind = source.tensors[EMBEDDING].kind.name
    return {"F32": "float32", "BF16": "bfloat16"}.get(kind, family.dtype)


def unpack(path: Path, folder: Path, dtype: str | None = None) -> None:
    """Writes the model in a GGUF file as a Hugging Face folder.

    Args:
        path (Path): the GGUF file.
        folder (Path): an existing folder to write to.
        dtype (str): type of the weights. Default: the file's; for a quantised file
            float16, or bfloat16 for a family that overflows in float16.

    Raises:
        AllMemError: if the file is not GGUF, is damaged, or holds a model, a tensor
            or a tokenizer that is not supported.
    """
    source, family = _open(path)
    vocabulary = Vocabulary(source)
    config = read_config(source, family, vocabulary)
    weights = read_weights(source, family)
    dtype = dtype or _dtype(source, family)
    write_tokenizer(vocabulary, folder)
    config["torch_dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(weights, folder, getattr(mx, dtype))
