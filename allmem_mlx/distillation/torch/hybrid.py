"""A Hugging Face causal LM whose attention layers are hybrids.

Each attention layer becomes window + sinks + alpha * memory; the base model's weights
stay frozen. The same model is also the teacher: the :class:`View` of a forward pass
tells its layers what to compute, and its :class:`State` what was read before.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ...config import AllMemConfig
from ...errors import AllMemError, reason
from .memory import Memory, MemoryState

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


@dataclass
class State:
    """What documents of one length leave when they are read, for what follows them.

    Args:
        tokens (int): number of tokens read.
        past (dict): for each layer the keys and values of the last tokens and of the
            sinks, ``[B, n_kv, tokens, d]``, turned by their place in the document.
        memory (dict): for each hybrid layer the state of its memory.

    Nothing in it has a gradient.
    """

    tokens: int = 0
    past: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    memory: dict[int, MemoryState] = field(default_factory=dict)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE by ``angles [..., d/2]``; channel i turns with channel i + d/2."""
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
    view, before, after = kwargs["view"], kwargs["before"], kwargs["after"]
    window, sinks = view.window, view.sinks
    if sliding := kwargs.get("sliding_window"):  # a local layer beside global ones
        window, sinks = sliding, 0
    B, heads, L, d = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if window >= L and after is None:
        out = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, 1),
            value.repeat_interleave(group, 1),
            is_causal=True,
            scale=scaling,
        )
        return out.transpose(1, 2), None

    # Every block of one chunk sees the sinks, and the window before its last token.
    start, chunk = before.tokens, min(view.chunk, L)
    blocks, device = -(-L // chunk), query.device
    tail = blocks * chunk - L
    if start:
        *past, first_keys, first_values = before.past[module.layer_idx]
    else:
        past = [x.new_zeros(B, kv_heads, window, d) for x in (key, value)]
        first_keys, first_values = key[:, :, :sinks], value[:, :, :sinks]
    keys, values = (
        torch.cat([x, y], dim=2) for x, y in zip(past, (key, value), strict=True)
    )
    if after is not None:
        kept = keys[:, :, -window:], values[:, :, -window:], first_keys, first_values
        after.past[module.layer_idx] = tuple(x.detach() for x in kept)

    def in_blocks(x: Tensor) -> Tensor:  # [B, n, T, d] -> [B blocks, n, window + c, d]
        parts = F.pad(x, (0, 0, 0, tail)).unfold(2, window + chunk, chunk)
        return parts.permute(0, 2, 1, 4, 3).flatten(0, 1)

    starts = start + chunk * torch.arange(blocks, device=device)
    turns = (starts - (window + sinks)).clamp(min=0)
    angles = turns[:, None, None, None] * module.frequencies
    turned = rotate(first_keys[:, None], angles).flatten(0, 1)
    again = first_values[:, None].expand(-1, blocks, -1, -1, -1).flatten(0, 1)
    k = torch.cat([turned, in_blocks(keys)], dim=2)
    v = torch.cat([again, in_blocks(values)], dim=2)
    q = F.pad(query, (0, 0, 0, tail)).unflatten(1, (kv_heads, group))
    q = q.unflatten(3, (blocks, chunk)).permute(0, 3, 1, 2, 4, 5)
    q = q.reshape(B * blocks, kv_heads, group * chunk, d)

    i = starts[:, None, None] + torch.arange(chunk, device=device)[:, None]
    j = starts[:, None, None] + torch.arange(-window, chunk, device=device)
    sink = torch.arange(first_keys.shape[2], device=device).expand(blocks, 1, -1)
    near = (j <= i) & (i - j < window) & (j >= sinks)
    mask = torch.cat([sink <= i, near], dim=-1).repeat(B, group, 1)[:, None]
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    o = o.view(B, blocks, kv_heads, group, chunk, d).permute(0, 1, 4, 2, 3, 5)
    return o.reshape(B, blocks * chunk, heads, d)[:, :L], None


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
        self.layer: int = base.layer_idx
        self.base: Any = base
        self.memory = Memory(dims, config)
        self.alpha = nn.Parameter(torch.zeros(dims))

    def forward(
        self,
        hidden_states: Tensor,
        view: View,
        before: State,
        after: State | None,
        embedded: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        attended, _ = self.base(
            hidden_states=hidden_states,
            view=view,
            before=before,
            after=after,
            **kwargs,
        )
        if not view.memory:
            return attended, None
        recalled, memory = self.memory(
            hidden_states,
            embedded,
            state=before.memory.get(self.layer),
            chunk=view.chunk,
            write=view.write,
            swap=view.swap,
        )
        if after is not None:
            after.memory[self.layer] = memory
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

    def _forward(
        self,
        tokens: Tensor,
        view: View,
        before: State | None = None,
        after: State | None = None,
        **options: Any,
    ) -> Any:
        before = before or State()
        end = before.tokens + tokens.shape[1]
        places = torch.arange(before.tokens, end, device=tokens.device)
        if after is not None:
            after.tokens = end
        return self.model.model(
            input_ids=tokens,
            position_ids=places[None],
            use_cache=False,
            view=view,
            before=before,
            after=after,
            embedded=self.embedded(tokens),
            **options,
        )

    def hidden(self, tokens: Tensor, view: View) -> Tensor:
        """The last hidden states of whole documents, ``[B, L, D]``."""
        return self._forward(tokens, view).last_hidden_state

    def read(self, tokens: Tensor, view: View, state: State) -> tuple[Tensor, State]:
        """Reads a part of documents.

        Args:
            tokens (Tensor): token ids, ``[B, L]``.
            view (View): what the layers compute.
            state (State): what was read before, in whole chunks.

        Returns:
            tuple: the last hidden states, ``[B, L, D]``, and the state after them.
        """
        after = State()
        return self._forward(tokens, view, state, after).last_hidden_state, after

    @torch.no_grad()
    def residual_streams(
        self, tokens: Tensor, view: View = TEACHER
    ) -> list[tuple[Any, Tensor]]:
        """The decoder layers with a memory, and their inputs ``[B, L, D]``."""
        inputs = self._forward(tokens, view, output_hidden_states=True).hidden_states
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

    @torch.no_grad()
    def load(self, memory: dict[str, Tensor]) -> None:
        """Gives trainable parameters other values, by their names."""
        parameters = self.parameters()
        for name, x in memory.items():
            parameters[name].copy_(x)

    def layers(self) -> list[HybridAttention]:
        attentions = (layer.self_attn for layer in self.model.model.layers)
        return [x for x in attentions if isinstance(x, HybridAttention)]
