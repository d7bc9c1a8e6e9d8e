"""A Hugging Face causal LM whose attention layers are hybrids.

Each attention layer becomes window + sinks + alpha * memory; the base model's weights
stay frozen. The same model is also the teacher: the :class:`View` of a forward pass
tells its layers what to compute.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ...config import AllMemConfig
from ...errors import AllMemError, reason
from .memory import Memory

FAMILIES = ("llama", "qwen3", "gemma3_text")
FULL = 1 << 40  # a window that no document fills


def load_base(folder: str | Path, dtype: str) -> tuple[Any, Any]:
    """Loads a causal LM and its tokenizer from a folder, as Hugging Face writes it.

    Raises:
        AllMemError: if there is no such model, or it cannot be read.
    """
    if not (Path(folder) / "config.json").is_file():
        raise AllMemError(f"{folder} is not a model folder: it has no config.json")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AllMemError(f"{folder} cannot be loaded: {reason(error)}") from error
    tokenizer.model_max_length = 10**9  # no warning of texts that are cut later
    return model, tokenizer


@dataclass(frozen=True)
class View:
    """The settings of the layers in a forward pass.

    Args:
        window (int): tokens that attention sees, the query included.
        sinks (int): first tokens, which attention always sees.
        chunk (int): tokens between two updates of the memory.
        memory (bool): whether there is a memory branch.
        write (bool): whether the memory is written; ``False`` is a control.
        swap (bool): whether each document reads the memory of the one before it in the
            batch; a control.
    """

    window: int = FULL
    sinks: int = 0
    chunk: int = 64
    memory: bool = False
    write: bool = True
    swap: bool = False


TEACHER = View()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE by ``angles [d/2]``; channel i turns with channel i + d/2."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def window_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: ``causal and ((i - j) < W or j < s)``.

    Positions are bounded as in :class:`AllMemConfig`: RoPE is relative, so only the
    sinks have to be turned, to stay just before the window.
    """
    view = kwargs["view"]
    if sliding := kwargs.get("sliding_window"):  # a local layer beside global ones
        view = View(window=sliding, chunk=sliding)
    B, heads, L, d = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if view.window >= L:
        out = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, 1),
            value.repeat_interleave(group, 1),
            is_causal=True,
            scale=scaling,
        )
        return out.transpose(1, 2), None

    window, sinks, chunk = view.window, view.sinks, view.chunk
    queries = query.unflatten(1, (kv_heads, group))
    token = torch.arange(L, device=query.device)
    outputs = []
    for start in range(0, L, chunk):
        end = min(start + chunk, L)
        first = start - window + 1
        q = queries[:, :, :, start:end].flatten(2, 3)  # [B, n_kv, group c, d]
        if first <= sinks:
            k, v, seen = key[:, :, :end], value[:, :, :end], token[:end]
        else:
            shift = max(0, start - (window + sinks))
            turned = rotate(key[:, :, :sinks], shift * module.frequencies)
            k = torch.cat([turned, key[:, :, first:end]], dim=2)
            v = torch.cat([value[:, :, :sinks], value[:, :, first:end]], dim=2)
            seen = torch.cat([token[:sinks], token[first:end]])
        i = token[start:end, None]
        mask = (seen <= i) & ((i - seen < window) | (seen < sinks))
        o = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.repeat(group, 1), scale=scaling
        )
        outputs.append(o.unflatten(2, (group, end - start)).flatten(1, 2))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register("allmem", window_attention)


class HybridAttention(nn.Module):
    """``TokenMixer(u) = attention(u) + alpha * memory(u)``; ``memory`` and ``alpha``
    have the names of the MLX layer.

    Args:
        base (nn.Module): the base model's attention.
        dims (int): width of the model.
        config (AllMemConfig): sizes of the memory.
    """

    def __init__(self, base: Any, dims: int, config: AllMemConfig):
        super().__init__()
        self.base: Any = base
        self.memory = Memory(dims, config)
        self.alpha = nn.Parameter(torch.zeros(dims))

    def forward(
        self, hidden_states: Tensor, view: View, embedded: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        attended, _ = self.base(hidden_states=hidden_states, view=view, **kwargs)
        if not view.memory:
            return attended, None
        recalled = self.memory(
            hidden_states,
            embedded,
            chunk=view.chunk,
            write=view.write,
            swap=view.swap,
        )
        return attended + self.alpha.to(recalled.dtype) * recalled, None


class Hybrid:
    """A frozen base model with a trainable memory.

    Args:
        model (PreTrainedModel): a causal LM of transformers.
        config (AllMemConfig): sizes of the memory.

    Raises:
        AllMemError: if the model is of a family that is not supported.
    """

    def __init__(self, model: Any, config: AllMemConfig):
        if model.config.model_type not in FAMILIES:
            raise AllMemError(
                f"model family {model.config.model_type!r} cannot be distilled here; "
                f"supported: {', '.join(FAMILIES)}"
            )
        self.model, self.config = model, config
        model.requires_grad_(False)
        model.config._attn_implementation = "allmem"
        dims, layers = model.config.hidden_size, model.model.layers
        candidates = []
        for i, layer in enumerate(layers):
            layer.self_attn.frequencies = self._frequencies
            if not getattr(layer.self_attn, "is_sliding", False):
                candidates.append(i)
        for i in config.memory_layers(candidates):
            layers[i].self_attn = HybridAttention(layers[i].self_attn, dims, config)

    def _read(self, tokens: Tensor, view: View, **options: Any) -> Any:
        embedded = self.embedded(tokens)
        return self.model.model(
            input_ids=tokens, use_cache=False, view=view, embedded=embedded, **options
        )

    def hidden(self, tokens: Tensor, view: View) -> Tensor:
        """The last hidden states, ``[B, L, D]``."""
        return self._read(tokens, view).last_hidden_state

    @torch.no_grad()
    def residual_streams(self, tokens: Tensor) -> list[tuple[Any, Tensor]]:
        """The decoder layers with a memory, and their inputs ``[B, L, D]`` where all
        attention is full."""
        inputs = self._read(tokens, TEACHER, output_hidden_states=True).hidden_states
        layers = zip(self.model.model.layers, inputs, strict=False)
        return [x for x in layers if isinstance(x[0].self_attn, HybridAttention)]

    def embedded(self, tokens: Tensor) -> Tensor:
        """The token embeddings, normed to a mean square of 1, ``[B, L, D]``."""
        x = self.model.get_input_embeddings()(tokens)
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)

    @property
    def _frequencies(self) -> Tensor:
        """RoPE's frequencies in the hybrid layers, ``[d/2]``."""
        rotary = self.model.model.rotary_emb
        if hasattr(rotary, "inv_freq"):
            return rotary.inv_freq
        return rotary.full_attention_inv_freq

    @property
    def head(self) -> Tensor:
        """The output matrix, ``[V, D]``."""
        return self.model.get_output_embeddings().weight

    @property
    def output_scale(self) -> Tensor:
        """The scale of the last norm, ``[D]``."""
        weight = self.model.model.norm.weight
        return weight + 1 if self.model.config.model_type == "gemma3_text" else weight

    @property
    def device(self) -> torch.device:
        return self.model.device

    def checkpoint_activations(self) -> None:
        """Gradient checkpointing: recomputes activations in the backward pass."""
        self.model.activation_checkpointing_enable()
        self.model.train()  # transformers checkpoints in training only

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by their names in the model."""
        return {k: p for k, p in self.model.named_parameters() if p.requires_grad}

    def layers(self) -> list[HybridAttention]:
        attentions = (layer.self_attn for layer in self.model.model.layers)
        return [x for x in attentions if isinstance(x, HybridAttention)]
