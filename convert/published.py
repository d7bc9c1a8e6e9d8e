"""The language model's parameters in a published checkpoint, apart from its extras."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from allmem_mlx.errors import AllMemError
from allmem_mlx.hub import WEIGHTS
from allmem_mlx.weight_files import safetensors_header

HEAD, EMBEDDING = "lm_head.", "model.embed_tokens."
# The output for a text does not depend on these.
EXTRAS = (
    # Tables that follow from the configuration; transformers used to save them.
    r"(.+\.)?rotary_emb\w*\.\w+",
    r"(.+\.)?(\w*attn|attention)\.(masked_)?bias",
    # Heads that predict more than one token at a time.
    r"(.+\.)?mtp(_\w+)?\..+",
    # Towers beside the language model.
    r"(model\.)?(vision_tower|vision_model|vision_embedder|visual|audio_tower)\..+",
    r"(model\.)?(multi_modal_projector|connector|embed_vision|embed_audio)\..+",
    r"(model\.)?image_newline",
)
_EXTRA = re.compile("|".join(EXTRAS))
_LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\..+")
# The language model's place in a model with other towers.
PREFIXES = {
    r"language_model\.(?=(layers|embed_tokens|norm)\b)": "model.",
    r"language_model\.": "",
    r"model\.(language_model|text_model)\.": "model.",
}

T = TypeVar("T")


def language_model_weights(
    weights: Mapping[str, T], config: Mapping[str, Any]
) -> tuple[dict[str, T], list[str]]:
    """The weights that the language model uses.

    Args:
        weights (Mapping): the checkpoint's tensors by name.
        config (Mapping): the base model's configuration.

    Returns:
        tuple: the weights under the names of the language model alone, unknown tensors
        included; the names of the others.
    """
    layers = config["num_hidden_layers"]
    count = config.get("num_nextn_predict_layers")
    predicting = range(layers, layers + count) if isinstance(count, int) else ()
    plain_weights, extras = {}, []
    for name, x in weights.items():
        plain = _without_prefix(name)
        layer = _LAYER.fullmatch(plain)
        if _EXTRA.fullmatch(plain) or (layer and int(layer[1]) in predicting):
            extras.append(name)
        else:
            plain_weights[plain] = x
    if config["tie_word_embeddings"] and not _parts(plain_weights, EMBEDDING):
        for part in _parts(plain_weights, HEAD):  # saved under the other name
            plain_weights[EMBEDDING + part] = plain_weights.pop(HEAD + part)
    return plain_weights, extras


def language_model_quantization(quantization: Any) -> Any:
    """The settings of a quantisation by MLX under the names of the language model.

    Args:
        quantization (dict): ``quantization`` of a ``config.json``: settings for all
            modules, and for single ones under their names.
    """
    if not isinstance(quantization, dict):
        return quantization
    plain = {_without_prefix(name): x for name, x in quantization.items()}
    return {name: x for name, x in plain.items() if not _EXTRA.fullmatch(name)}


def _without_prefix(name: str) -> str:
    for prefix, plain in PREFIXES.items():
        if match := re.match(prefix, name):
            return plain + name[match.end() :]
    return name


def _parts(weights: Mapping[str, Any], module: str) -> list[str]:
    """A module's tensors: its weight and, if it is quantised, scales and biases."""
    return [name.removeprefix(module) for name in weights if name.startswith(module)]


def has_own_head(folder: Path) -> bool:
    """Whether a folder has a head that is not its embedding.

    Args:
        folder (Path): a model folder; weights need not be there.
    """
    arrays: dict[str, mx.array] = {}
    for file in folder.glob(WEIGHTS[0]):
        names = {_without_prefix(name): name for name in safetensors_header(file)}
        both = [x for x in names if x.startswith((HEAD, EMBEDDING))]
        if both:
            loaded: Any = mx.load(str(file))
            arrays |= {x: loaded[names[x]] for x in both}
    parts = _parts(arrays, HEAD) if _parts(arrays, EMBEDDING) else []
    return not all(_is_embedding(part, arrays) for part in parts)


def _is_embedding(part: str, weights: Mapping[str, mx.array]) -> bool:
    """Whether a part of the head equals that of the embedding."""
    head, embedding = weights[HEAD + part], weights.get(EMBEDDING + part)
    return embedding is not None and bool(
        mx.array_equal(head, embedding, equal_nan=True)
    )


def without_head(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The weights of a model that uses its embedding as its head, without the copy that
    a checkpoint may hold.

    Raises:
        AllMemError: if the head in the checkpoint is another matrix.
    """
    weights = dict(weights)
    for part in _parts(weights, HEAD):
        if not _is_embedding(part, weights):
            raise AllMemError(
                f"{HEAD}{part} differs from the embedding, but config.json says that "
                "they are one (tie_word_embeddings); set that to false if the model "
                "has its own head, or delete the tensor"
            )
        del weights[HEAD + part]
    return weights
