"""Tensors of a model as llama.cpp's converter makes them of a Hugging Face folder.

Each function follows ``modify_tensors`` of the class of that name in llama.cpp's
``conversion`` package. A name is that of the folder until ``map_tensor_name``, which is
the gguf package's.
"""

from collections.abc import Iterable
from typing import Any

import gguf
import numpy as np

Found = Iterable[tuple[str, np.ndarray]]


def permute(x: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute"""
    rows = x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:])
    return rows.swapaxes(1, 2).reshape(x.shape)


def llama(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        x = permute(x, config["num_attention_heads"])
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        x = permute(x, config["num_key_value_heads"])
    if ".block_sparse_moe.experts." in name:
        name = name.replace("model.", "").replace("block_sparse_moe", "feed_forward")
    yield name, x


def plus_one(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    yield name, x + 1 if name.endswith("norm.weight") else x


def granite_moe(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    layer = name.split("layers.")[-1].split(".")[0]
    has_experts = bool(config["num_local_experts"])
    if name.endswith("block_sparse_moe.input_linear.weight"):
        gate, up = np.split(x, 2, axis=-2)
        yield f"blk.{layer}.ffn_gate_exps.weight", gate
        yield f"blk.{layer}.ffn_up_exps.weight", up
    elif name.endswith("shared_mlp.input_linear.weight"):
        gate, up = np.split(x, 2, axis=-2)
        kind = "_shexp" if has_experts else ""
        yield f"blk.{layer}.ffn_gate{kind}.weight", gate
        yield f"blk.{layer}.ffn_up{kind}.weight", up
    elif name.endswith("shared_mlp.output_linear.weight") and not has_experts:
        yield f"blk.{layer}.ffn_down.weight", x
    else:
        yield from llama(name, x, config)


def mamba2(name: str, x: np.ndarray, groups: int) -> tuple[str, np.ndarray]:
    if name.endswith(".dt_bias"):
        return name.removesuffix(".dt_bias") + ".dt_proj.bias", x
    if name.endswith("conv1d.weight"):
        return name, x.squeeze()
    if name.endswith(".A_log"):
        return name, -np.exp(x).reshape(-1, 1)
    if name.endswith(".D"):
        return name, x.reshape(-1, 1)
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        return name, x.reshape(groups, -1)
    return name, x


def granite_hybrid(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    if ".mamba." in name:
        yield mamba2(name, x, config["mamba_n_groups"])
    else:
        yield from granite_moe(name, x, config)


def nemotron_h(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    name, x = mamba2(name, x, config["n_groups"])
    if name.endswith("e_score_correction_bias"):
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    if ".experts." in name:  # stacked: see stack
        name = name.replace("backbone.", "model.").replace("mixer", "mlp")
    yield from llama(name, x, config)


def falcon_h1(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    old = name
    name, x = mamba2(name, x, config["mamba_n_groups"])
    inputs = config["attention_in_multiplier"]
    if "down_proj" in old:
        x = x * config["mlp_multipliers"][1]
    elif "gate_proj" in old:
        x = x * config["mlp_multipliers"][0]
    elif "k_proj" in old:
        x = x * config["key_multiplier"] * inputs
    elif "q_proj" in old or "v_proj" in old:
        x = x * inputs
    elif "o_proj" in old:
        x = x * config["attention_out_multiplier"]
    elif "out_proj" in old:
        x = x * config["ssm_out_multiplier"]
    elif "in_proj" in old:
        inner = config["mamba_d_ssm"]
        state = config["mamba_n_groups"] * config["mamba_d_state"]
        heads = len(x) - 2 * inner - 2 * state
        sizes = [inner, inner, state, state, heads]
        scale = np.repeat(np.float32(config["ssm_multipliers"]), sizes)
        x = x * np.float32(config["ssm_in_multiplier"]) * scale[:, None]
    elif "lm_head" in old:
        x = x * config["lm_head_multiplier"]
    elif "embed_tokens" in old:
        x = x * config["embedding_multiplier"]
    yield name, x.astype(np.float32)


def gpt_oss(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    if name.endswith("sinks"):
        name += ".weight"
    if "experts" not in name:
        yield name, x
        return
    bias = name.endswith("_bias")
    x = x if bias else x.swapaxes(-1, -2)
    kind = "bias" if bias else "weight"
    name = name.removesuffix("_bias")
    if name.endswith("down_proj"):
        yield f"{name}.{kind}", x
    else:
        axis = (slice(None), slice(None, None, 2))
        yield f"{name.replace('gate_up_proj', 'gate_proj')}.{kind}", x[axis]
        axis = (slice(None), slice(1, None, 2))
        yield f"{name.replace('gate_up_proj', 'up_proj')}.{kind}", x[axis]


def lfm2(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    if "conv.conv" in name:
        x = x.squeeze(1)
    if name.endswith(".expert_bias"):
        name += ".bias"
    yield name.replace("model.layers", "layers") if ".experts." in name else name, x


def ernie(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    if name.endswith("e_score_correction_bias"):
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    yield name, x


def gemma4(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    layer = name.split("layers.")[-1].split(".")[0]
    if name.endswith("layer_scalar") or ".experts." in name:
        name += ".weight"
    if name.endswith("router.scale"):
        name = f"blk.{layer}.ffn_gate_inp.scale"
    if name.endswith("per_expert_scale"):
        name = f"blk.{layer}.ffn_down_exps.scale"
    yield name, x


def qwen3_next(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    layer = name.split("layers.")[-1].split(".")[0]
    if name.endswith(".A_log"):
        x = -np.exp(x)
    elif name.endswith(".dt_bias"):
        name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
    elif "conv1d" in name:
        x = x.squeeze()
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        x = x + 1
    if "in_proj_qkvz.weight" not in name:
        yield name, x
        return
    keys, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    width = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    parts = np.split(
        x.T.reshape(x.shape[1], keys, -1), np.cumsum([size, size, width]), axis=-1
    )
    q, k, v, z = (part.reshape(x.shape[1], -1) for part in parts)
    yield f"blk.{layer}.attn_qkv.weight", np.concatenate([q, k, v], axis=-1).T
    yield f"blk.{layer}.attn_gate.weight", z.T


def reorder(x: np.ndarray, axis: int, config: dict[str, Any], size: int) -> np.ndarray:
    """_LinearAttentionVReorderBase._reorder_v_heads"""
    keys = config["linear_num_key_heads"]
    each = config["linear_num_value_heads"] // keys
    shape = (*x.shape[:axis], keys, each, size, *x.shape[axis + 1 :])
    return x.reshape(shape).swapaxes(axis, axis + 1).reshape(x.shape)


def qwen3_5(name: str, x: np.ndarray, config: dict[str, Any]) -> Found:
    """Qwen3_5TextModel: heads of values in another order."""
    size = config["linear_value_head_dim"]
    qk = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    if "in_proj_qkv." in name or "conv1d" in name:
        x = x.squeeze()
        x = np.concatenate([x[:qk], reorder(x[qk:], 0, config, size)])
    elif "in_proj_z." in name:
        x = reorder(x, 0, config, size)
    elif ".in_proj_b." in name or ".in_proj_a." in name:
        x = reorder(x, 0, config, 1)
    elif ".A_log" in name or ".dt_bias" in name:
        x = reorder(x, 0, config, 1)
    elif ".out_proj." in name:
        x = reorder(x, 1, config, size)
    yield from qwen3_next(name, x, config)


MODIFIED = {
    "ernie4_5_moe": ernie,
    "falcon_h1": falcon_h1,
    "gemma": plus_one,
    "gemma2": plus_one,
    "gemma3_text": plus_one,
    "gemma4_text": gemma4,
    "glm4_moe": ernie,
    "gpt_oss": gpt_oss,
    "granite": llama,
    "granitemoe": granite_moe,
    "granitemoehybrid": granite_hybrid,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
    "llama": llama,
    "mistral": llama,
    "mixtral": llama,
    "nemotron": plus_one,
    "nemotron_h": nemotron_h,
    "qwen3_5_moe_text": qwen3_5,
    "qwen3_5_text": qwen3_5,
    "qwen3_next": qwen3_next,
    "smollm3": llama,
}


def stack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the experts of a layer in one, as llama.cpp has them."""
    stacked: dict[str, Any] = {}
    for name, x in tensors.items():
        parts = name.split(".experts.")
        if len(parts) == 2 and parts[1].split(".")[0].isdecimal():
            number, _, rest = parts[1].partition(".")
            stacked.setdefault(f"{parts[0]}.experts.{rest}", {})[int(number)] = x
        else:
            stacked[name] = x
    return {
        name: np.stack([x[i] for i in range(len(x))]) if isinstance(x, dict) else x
        for name, x in stacked.items()
    }


def convert_tensors(
    tensors: dict[str, np.ndarray], config: dict[str, Any], architecture: str
) -> dict[str, np.ndarray]:
    """A model's tensors under llama.cpp's names and in its layout.

    Args:
        tensors (dict): those of the folder.
        config (dict): of transformers.
        architecture (str): llama.cpp's name of the family.
    """
    archs = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = config.get("num_hidden_layers") or len(config["layers_block_type"])
    names = gguf.get_tensor_name_map(archs[architecture], layers)
    unchanged = lambda name, x, config: [(name, x)]  # noqa: E731
    modify = MODIFIED.get(config["model_type"], unchanged)
    found = {}
    for name, x in stack(tensors).items():
        for new, y in modify(name, x, config):
            if not new.startswith("blk."):
                mapped = names.get_name(new, (".weight", ".bias"))
                assert mapped is not None, new
                new = mapped
            found[new] = np.ascontiguousarray(y)
    return found
