"""A Hugging Face model whose attention layers are the reference's hybrids.

What distillation in PyTorch trains: the base is frozen, memories and alphas are not.
"""

from collections.abc import Iterator

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from allmem_mlx.config import AllMemConfig


class HybridAttention(oracle.HybridAttention):
    """The reference layer as transformers calls an attention layer."""

    def forward(self, hidden_states: Tensor, **_) -> tuple[Tensor, None]:
        attended, _, _ = self.attention(hidden_states)
        recalled, _ = self.memory(hidden_states)
        return attended + self.alpha * recalled, None


def initialise(memory: oracle.Memory) -> None:
    """The memory before training, as ``allmem_mlx.memory.layer`` begins: q and v see the
    token itself, k the token before it."""
    with torch.no_grad():
        for projection in (memory.in_proj, memory.o_proj):
            projection.weight.normal_(std=0.02)
        memory.w0_gate.normal_(std=0.5)
        memory.w0_up.normal_(std=0.5)
        memory.w0_down.normal_(std=memory.config.hidden_dim**-0.5)
        q, k, v = memory.conv_weight.zero_().chunk(3)
        q[:, -1] = v[:, -1] = 1
        k[:, max(-2, -memory.config.conv_kernel)] = 1


def hybrid_model(
    folder, config: AllMemConfig, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A base model with a fresh memory in each layer; only those are to be trained.

    Args:
        folder (Path): a llama or qwen3 model of Hugging Face.
        config (AllMemConfig): sizes of the hybrid layer.
        dtype (torch.dtype): of parameters and arithmetic.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.requires_grad_(False)
    base = {"rope_theta": model.config.rope_parameters["rope_theta"]}
    base |= model.config.to_dict()
    for layer in model.model.layers:
        hybrid = HybridAttention(base, config, dtype)
        hybrid.load_state_dict(layer.self_attn.state_dict(), strict=False)
        hybrid.requires_grad_(False)
        initialise(hybrid.memory)
        hybrid.memory.requires_grad_(True)
        hybrid.alpha.requires_grad_(True)
        layer.self_attn = hybrid
    return model


def memory_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained."""
    for name, x in model.named_parameters():
        if x.requires_grad:
            yield name, x


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """``[B, L, vocabulary]``, over the whole document at once."""
    return model(tokens, use_cache=False).logits


def train(model: nn.Module, teacher: nn.Module, batches, learning_rate: float) -> float:
    """Distils with Adam on the forward KL divergence; returns the last loss.

    Args:
        model (nn.Module): the hybrid.
        teacher (nn.Module): the base model, with full attention.
        batches (iterable): token ids, ``[B, L]``.
        learning_rate (float): of Adam.
    """
    parameters = [x for _, x in memory_parameters(model)]
    # Until alpha has left 0, the memory's gradients are far below Adam's usual eps.
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, eps=1e-10)
    for tokens in batches:
        with torch.no_grad():
            target = logits(teacher, tokens).log_softmax(dim=-1)
        student = logits(model, tokens).log_softmax(dim=-1)
        loss = F.kl_div(student, target, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
