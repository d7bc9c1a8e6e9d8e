"""transformers' own models over window and sinks, with an attention function of ours: a
plain softmax in float64 that makes its mask from the layer's settings alone."""

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "window_and_sinks"


def native_window(module: Any) -> int | None:
    """The window of a layer that slides in the base, beside others that do not."""
    types = getattr(module.config, "layer_types", None) or ["full_attention"]
    if "full_attention" not in types or len(types) == 1:
        return None
    slides = types[module.layer_idx] == "sliding_attention"
    return module.config.sliding_window if slides else None


def visible(module: Any, tokens: int, window: int, sinks: int) -> torch.Tensor:
    """The keys that each query sees, ``[T, T]``."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    if (native := native_window(module)) is not None:
        window, sinks = native, 0
    return (key <= query) & ((query - key < window) | (key < sinks))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    window: int,
    sinks: int,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers. The mask that it is given is not used.

    Args:
        query, key, value (torch.Tensor): ``[B, heads, T, d]``.
        s_aux (torch.Tensor): learned logits of a key without value, one a head.
    """
    B, heads, T, d = query.shape
    repeats = heads // key.shape[1]
    q, k, v = (x.double() for x in (query, key, value))
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (d**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(module, T, window, sinks)
    scores = scores.masked_fill(~seen, float("-inf"))
    if s_aux is not None:
        extra = s_aux.double().reshape(1, -1, 1, 1).expand(B, -1, T, 1)
        scores = torch.cat([scores, extra], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :T]
    return (weights @ v).transpose(1, 2).to(query.dtype).contiguous(), None


def windowed_logits(model: Any, tokens: Any, window: int, sinks: int) -> np.ndarray:
    """The logits of a model of transformers over window and sinks.

    Args:
        model: the model, of a class that takes its attention from the interface.
        tokens: ``[B, T]``.
        window (int): tokens that a layer sees which does not slide in the base.
        sinks (int): first tokens that it sees besides.
    """
    AttentionInterface.register(NAME, partial(attend, window=window, sinks=sinks))
    AttentionMaskInterface.register(NAME, lambda **options: None)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    assert model.config._attn_implementation == NAME
    with torch.no_grad():
        logits = model(torch.tensor(np.asarray(tokens)), use_cache=False).logits
    model.set_attn_implementation(before)
    return logits.numpy()
