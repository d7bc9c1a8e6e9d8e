"""Weights under the names and in the layouts of mlx-lm's model files, where these do
not translate transformers' own.

Each function leaves weights as they are that have been translated.
"""

import re
from typing import Any

import mlx.core as mx

from ..errors import warn

Weights = dict[str, mx.array]


def ernie4_5_moe(weights: Weights, config: dict[str, Any]) -> Weights:
    """mlx-lm leaves out the bias of the experts, so that what it has converted lacks
    it. It gets a name that mlx-lm does not know."""
    plain, bias = {}, "moe_statics.e_score_correction_bias"
    for name, x in weights.items():
        if name.endswith(bias):
            name, x = name.replace(bias, "expert_bias"), x.reshape(-1)
        plain[name] = x
    end = ".gate.weight"
    layers = [name.removesuffix(end) for name in plain if name.endswith(end)]
    lacking = {f"{layer}.expert_bias" for layer in layers} - plain.keys()
    if lacking:
        warn("the bias of the experts was left out by mlx-lm; it is taken to be 0")
    zeros = mx.zeros((config["moe_num_experts"],))
    return {**plain, **dict.fromkeys(lacking, zeros)}


def qwen3_moe(weights: Weights, config: dict[str, Any]) -> Weights:
    """Experts that are joined, as in Qwen3-VL, whose published matrices are
    transposed."""
    plain, dims = {}, config["hidden_size"]
    for name, x in weights.items():
        layer, joined, part = name.partition(".experts.")
        if joined and part == "down_proj":
            x = x if x.shape[-2] == dims else x.swapaxes(-1, -2)
            plain[f"{layer}.switch_mlp.down_proj.weight"] = x
        elif joined and part == "gate_up_proj":
            x = x if x.shape[-1] == dims else x.swapaxes(-1, -2)
            gate, up = mx.split(x, 2, axis=-2)
            plain[f"{layer}.switch_mlp.gate_proj.weight"] = gate
            plain[f"{layer}.switch_mlp.up_proj.weight"] = up
        else:
            plain[name] = x
    return plain


def qwen3_5_moe(weights: Weights, config: dict[str, Any]) -> Weights:
    """Experts that are joined, as published, or single, as transformers saves the
    language model alone."""
    plain = qwen3_moe(weights, config)
    for i in range(config["num_hidden_layers"]):
        mlp = f"model.layers.{i}.mlp"
        for part in ("gate_proj", "up_proj", "down_proj"):
            names = [
                f"{mlp}.experts.{expert}.{part}.weight"
                for expert in range(config["num_experts"])
            ]
            if names[0] in plain:
                experts = [plain.pop(name) for name in names]
                plain[f"{mlp}.switch_mlp.{part}.weight"] = mx.stack(experts)
    return plain


def gpt_oss(weights: Weights, config: dict[str, Any]) -> Weights:
    """Experts that are not packed: transformers has their inputs before their outputs,
    and gate and up projection take turns."""
    plain = {}
    for name, x in weights.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            name, x = f"{name}.weight", x.swapaxes(-1, -2)
        elif name.endswith("_proj_bias"):
            name = name.removesuffix("_bias") + ".bias"
        if ".gate_up_proj." in name:
            plain[name.replace("gate_up_proj", "gate_proj")] = x[:, ::2]
            plain[name.replace("gate_up_proj", "up_proj")] = x[:, 1::2]
        else:
            plain[name] = x
    return plain


def olmo_hybrid(weights: Weights, config: dict[str, Any]) -> Weights:
    """The norms of recurrent layers have names of their own in published weights."""
    names = {
        ".attention_layer_norm.": ".input_layernorm.",
        ".feedforward_layer_norm.": ".post_attention_layernorm.",
    }
    renamed = {}
    for name, x in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = x
    return renamed


def llama4(weights: Weights, config: dict[str, Any]) -> Weights:
    """mlx-lm has another name for the head."""
    return {re.sub(r"^lm_head\.", "output.", name): x for name, x in weights.items()}


def gemma3n(weights: Weights, config: dict[str, Any]) -> Weights:
    """Layers that read the keys and values of another have no use for their own."""
    first = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    unused = re.compile(r"model\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)\..+")

    def is_used(name: str) -> bool:
        match = unused.fullmatch(name)
        return match is None or int(match[1]) < first

    return {name: x for name, x in weights.items() if is_used(name)}
