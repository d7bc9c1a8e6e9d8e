"""Measures a base model on text, and initializes its memory."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ...errors import AllMemError
from ...hooks import Hooked
from ...memory.ops import RMS_EPS
from ...model import Model
from ..initial import Layer, Output, initial_memory, measure_text
from .student import hybrid_layers, logits_of, teacher_hidden


def _float(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


def _matrix(module: Any, name: str) -> np.ndarray:
    """The weight of a linear layer or an embedding, in float32."""
    module = module.get(name)
    if module is None:
        raise AllMemError(
            f"distillation starts from the base's {name}, which this family does not "
            "have; start from a memory that was trained before"
        )
    weight = module.weight
    if "scales" in module:
        weight = mx.dequantize(
            weight,
            module.scales,
            module.get("biases"),
            module.group_size,
            module.bits,
            mode=module.mode,
        )
    return _float(weight)


def _recorded(
    base: nn.Module, recorded: list[bool]
) -> tuple[nn.Module, list[mx.array], list[mx.array]]:
    """The model, and lists that it appends the inputs of layers and of their attention
    to."""
    streams: list[mx.array] = []
    inputs: list[mx.array] = []
    other = copy.copy(base)
    other.model = copy.copy(base.model)
    layers: list[Any] = []
    for layer, record in zip(base.layers, recorded, strict=True):
        if record:
            layer = copy.copy(layer)
            layer.self_attn = Hooked(
                layer.self_attn, lambda x, *_, **__: inputs.append(x)
            )
            layer = Hooked(layer, lambda x, *_, **__: streams.append(x))
        layers.append(layer)
    other.model.layers = layers
    return other, streams, inputs


def measure(
    model: Model, base: nn.Module, documents: list[list[int]]
) -> tuple[list[Layer], Output]:
    """Measures the inputs of the hybrid layers, and the output matrix.

    Args:
        model (Model): the hybrid.
        base (nn.Module): :func:`base_model` of it.
        documents (list): token ids of texts of one length.

    Raises:
        AllMemError: if the base has no separate projections for keys and values.
    """
    hybrids = hybrid_layers(model)
    config = model.base_config
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    attentions = model.attentions
    remembers = ["memory" in attentions.get(i, ()) for i in range(len(model.layers))]
    other, streams, inputs = _recorded(base, remembers)
    losses, embedded = [], []
    layer_inputs: list[list[np.ndarray]] = [[] for _ in hybrids]
    sizes = np.zeros(len(hybrids))
    for document in documents:
        tokens = mx.array([document])
        hidden = teacher_hidden(other, tokens)
        logits = logits_of(base, hidden).astype(mx.float32)[0, :-1]
        losses.append(np.array(nn.losses.cross_entropy(logits, tokens[0, 1:])))
        embedded.append(_float(model.normed_embeddings(tokens)[0]))
        for i, hybrid in enumerate(hybrids):
            u = inputs[i].astype(mx.float32)
            if not hybrid.family.normed:
                u = mx.fast.rms_norm(u, None, RMS_EPS)
            layer_inputs[i].append(np.array(u[0]))
            norms = mx.linalg.norm(streams[i][0].astype(mx.float32), axis=-1)
            sizes[i] += norms.mean().item() / len(documents)
        inputs.clear()
        streams.clear()
        mx.clear_cache()
    head = (base, "lm_head") if "lm_head" in base else (base.model, "embed_tokens")
    matrix = _matrix(*head)
    norm = base.model[model.family.names.norm]
    ones = mx.ones(matrix.shape[1])
    scale = norm.weight if isinstance(norm, nn.LayerNorm) else norm(ones)
    *text, output = measure_text(
        documents, np.array(losses), np.concatenate(embedded), matrix, _float(scale)
    )
    layers = []
    for hybrid, parts, size in zip(hybrids, layer_inputs, sizes, strict=True):
        value = _matrix(hybrid, "v_proj")
        out = _matrix(hybrid, "out_proj" if "out_proj" in hybrid else "o_proj")
        head_dim = len(value) // kv_heads
        base_layer = {"value": value, "out": out, "head_dim": head_dim, "size": size}
        layers.append(Layer.measured(np.concatenate(parts), *text, **base_layer))
    return layers, output


def initialize(
    model: Model, layers: list[Layer], output: Output, alpha: float, seed: int
) -> None:
    """Initializes the memory of every hybrid layer.

    Args:
        model (Model): the hybrid.
        layers, output: of :func:`measure`.
        alpha (float): of every channel.
        seed (int): of the random features.
    """
    start = initial_memory(model.allmem, layers, output, alpha, seed)
    for hybrid, arrays in zip(hybrid_layers(model), start, strict=True):
        named = [(name, mx.array(x)) for name, x in arrays.items()]
        hybrid.update(tree_unflatten(named))
