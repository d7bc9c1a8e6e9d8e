"""What is said of a family of models in :mod:`convert.gguf.families`, and names of
tensors that families share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .recipes import Recipe
from .source import Source

# Tensors in the file, and what they are in transformers' model. A name without its last
# part stands for a module; a whole name for a parameter or for a recipe, or for nothing
# if another tensor's recipe takes it.
Names = dict[str, str | Recipe | None]

TENSORS: Names = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS: Names = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
POST_NORMS: Names = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# The file's last norm before the MLP is called after the one that follows attention.
POST_ATTENTION: Names = {"post_attention_norm": "post_attention_layernorm"}
FUSED_MLP: Names = {"ffn_up": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores a family of models.

    Args:
        model_type (str): the family in transformers.
        settings (callable): reads the settings of ``config.json`` beside the sizes.
        tensors (dict): tensors that are not in ``TENSORS``.
        interleaved (bool): whether rows of q and k that are rotated together are
            neighbours.
        norm_offset (float): the offset that was added to the weights of norms, but for
            those of recurrent layers.
        partial (bool): whether part of a head may be rotated.
        dtype (str): a type in which the family does not overflow.
        layers (str): what the names of parameters in layers start with.
    """

    model_type: str
    settings: Callable[[Source], dict[str, Any]]
    tensors: Names = field(default_factory=dict)
    interleaved: bool = False
    norm_offset: float = 0.0
    partial: bool = False
    dtype: str = "float16"
    layers: str = "model.layers"
