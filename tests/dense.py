"""A whole llama or qwen3 model over window and sinks, dense, in plain PyTorch."""

import torch
import torch.nn.functional as F
from mlx.utils import tree_flatten
from oracle import HybridAttention
from torch import Tensor


@torch.no_grad()
def dense_logits(model, tokens: list[int]) -> Tensor:
    """What a hybrid with alpha = 0 has to compute, in float64.

    Every layer sees the whole document at once, masked to window and sinks, with
    positions moved as the chunk of the query has them.

    Args:
        model (Model): a hybrid; only its weights and configuration are used.
        tokens (list): one document.

    Returns:
        Tensor: logits, ``[L, vocabulary]``.
    """
    base, config = model.base_config, model.allmem
    weights = {
        name: torch.tensor(x, dtype=torch.float64)
        for name, x in tree_flatten(model.parameters())
    }

    def norm(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.rms_norm(x, x.shape[-1:], weight, base["rms_norm_eps"])

    x = weights["model.embed_tokens.weight"][tokens][None]
    for index in range(base["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        prefix = f"{layer}.self_attn."
        arrays = {
            name.removeprefix(prefix): w
            for name, w in weights.items()
            if name.startswith(prefix)
        }
        mixer = HybridAttention(base, config)
        mixer.load_state_dict(arrays)
        attended, _, _ = mixer.attention(norm(x, f"{layer}.input_layernorm"))
        x = x + attended
        u = norm(x, f"{layer}.post_attention_layernorm")
        gate = F.silu(u @ weights[f"{layer}.mlp.gate_proj.weight"].mT)
        up = u @ weights[f"{layer}.mlp.up_proj.weight"].mT
        x = x + (gate * up) @ weights[f"{layer}.mlp.down_proj.weight"].mT
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return (norm(x, "model.norm") @ head.mT)[0]
