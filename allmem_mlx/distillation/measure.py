"""Measures a base model on text, and sets where training of its memory starts."""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..errors import AllMemError
from ..hooks import Tap
from ..memory.ops import RMS_EPS
from ..model import Model
from .initial import Layer, Output, initial_memory
from .student import hybrid_layers, logits_of, teacher_hidden


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
    return np.array(weight.astype(mx.float32))


def _recorded(base: nn.Module, kept: list[bool]) -> tuple[nn.Module, list, list]:
    """The model, and where it notes the inputs of layers and of their attention."""
    streams: list[mx.array] = []
    inputs: list[mx.array] = []

    def note(noted: list[mx.array]) -> Callable[..., None]:
        return lambda x, *_, **__: noted.append(x)

    other = copy.copy(base)
    other.model = copy.copy(base.model)
    layers: list[Any] = []
    for layer, keep in zip(base.layers, kept, strict=True):
        if keep:
            layer = copy.copy(layer)
            layer.self_attn = Tap(layer.self_attn, note(inputs))
            layers.append(Tap(layer, note(streams)))
        else:
            layers.append(layer)
    other.model.layers = layers
    return other, streams, inputs


def measure(
    model: Model, base: nn.Module, documents: list[list[int]]
) -> tuple[list[Layer], Output]:
    """What the start of training is made of.

    Args:
        model (Model): the hybrid.
        base (nn.Module): :func:`base_model` of it.
        documents (list): token ids of texts, to measure the layers' inputs on.

    Raises:
        AllMemError: if the base has no projections of its own for keys and values.
    """
    tied = "lm_head" not in base
    head = _matrix(base.model, "embed_tokens") if tied else _matrix(base, "lm_head")
    head -= head.mean(0)
    hybrids = hybrid_layers(model)
    config = model.base_config
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    kept = ["memory" in layer.self_attn for layer in model.layers]
    other, streams, inputs = _recorded(base, kept)
    totals: list[dict[str, Any]] = [{} for _ in hybrids]
    surprises, rows, embeddings = [], [], []
    noted: list[list[np.ndarray]] = [[] for _ in hybrids]
    for document in documents:
        tokens = mx.array([document])
        hidden = teacher_hidden(other, tokens)
        logits = logits_of(base, hidden).astype(mx.float32)[0, :-1]
        loss = nn.losses.cross_entropy(logits, tokens[0, 1:])
        surprises.append(np.concatenate([[0.0], np.array(loss)]))
        rows.append(head[document])
        embeddings.append(np.array(model.embedded(tokens)[0].astype(mx.float32)))
        for i, hybrid in enumerate(hybrids):
            u, stream = inputs[i].astype(mx.float32), streams[i].astype(mx.float32)
            if not hybrid.family.normed:
                u = mx.fast.rms_norm(u, None, RMS_EPS)
            size = mx.linalg.norm(stream[0], axis=-1).mean().item()
            noted[i].append(np.array(u[0]))
            totals[i]["size"] = totals[i].get("size", 0.0) + size / len(documents)
        inputs.clear()
        streams.clear()
        mx.clear_cache()
    surprise, row = np.concatenate(surprises), np.concatenate(rows)
    surprise = (surprise - surprise.mean()) / surprise.std()
    layers = []
    for hybrid, total, parts in zip(hybrids, totals, noted, strict=True):
        u = np.concatenate(parts)
        value = _matrix(hybrid, "v_proj")
        layers.append(
            Layer(
                value=value,
                out=_matrix(hybrid, "o_proj"),
                head_dim=len(value) // kv_heads,
                moment=u.T @ u / len(u),
                mean=u.mean(0),
                surprise=u.T @ surprise / len(u),
                cross=u.T @ row / len(u),
                size=total["size"],
            )
        )
    # Half of tokens as they come, half of the whole vocabulary.
    moment = (row.T @ row / len(row) + head.T @ head / len(head)) / 2
    norm = base.model.get("norm") or base.model.final_layernorm
    ones = mx.ones(head.shape[1])
    scale = norm.weight if isinstance(norm, nn.LayerNorm) else norm(ones)
    x = np.concatenate(embeddings)
    output = Output(
        moment=moment,
        scale=np.array(scale.astype(mx.float32)),
        token_moment=x.T @ x / len(x),
        token_cross=x.T @ row / len(x),
    )
    return layers, output


def initialize(
    model: Model, layers: list[Layer], output: Output, alpha: float, seed: int
) -> None:
    """Sets what training starts from, in every hybrid layer.

    Args:
        model (Model): the hybrid.
        layers, output: what was measured.
        alpha (float): of every channel.
        seed (int): of the random features.
    """
    start = initial_memory(model.allmem, layers, output, alpha, seed)
    for hybrid, arrays in zip(hybrid_layers(model), start, strict=True):
        named = [(name, mx.array(x)) for name, x in arrays.items()]
        hybrid.update(tree_unflatten(named))
