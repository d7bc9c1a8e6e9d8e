"""Models whose layers are Mamba-2 or short convolutions, but for a few, as llama.cpp
stores them."""

from functools import partial
from typing import Any

from .architecture import Architecture, Names
from .mixtures import GRANITE, single_experts
from .recipes import convolution, experts, flat, negative_exponential
from .settings import FULL, SIGMOID, granite, rms, rms_epsilon, routing
from .source import Source


def mamba(place: str) -> Names:
    """Tensors of a Mamba-2 layer.

    Args:
        place (str): the module in the layer.
    """
    return {
        "ssm_in": f"{place}.in_proj",
        "ssm_conv1d.weight": convolution(f"{place}.conv1d.weight"),
        "ssm_conv1d.bias": f"{place}.conv1d.bias",
        "ssm_dt.bias": f"{place}.dt_bias",
        "ssm_a": negative_exponential(f"{place}.A_log"),
        "ssm_d": flat(f"{place}.D"),
        "ssm_norm.weight": flat(f"{place}.norm.weight"),
        "ssm_out": f"{place}.out_proj",
    }


SHORT_CONVOLUTION: Names = {
    "token_embd_norm": "model.embedding_norm",
    "output_norm": "model.embedding_norm",
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv.conv.weight": convolution("conv.conv.weight"),
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
LFM2_EXPERTS: Names = {
    **single_experts("feed_forward", "w1", "w3", "w2"),
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
NEMOTRON_H: Names = {
    **mamba("mixer"),
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_exps.weight": experts("mixer.experts.{}.up_proj.weight"),
    "ffn_down_exps.weight": experts("mixer.experts.{}.down_proj.weight"),
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
}


def _mamba(source: Source) -> dict[str, int]:
    """Sizes of a Mamba-2 layer."""
    heads, inner = (
        source.get("ssm.time_step_rank", int),
        source.get("ssm.inner_size", int),
    )
    if heads < 1 or inner < 1 or inner % heads:
        raise source.error(f"ssm.inner_size {inner} of {heads} heads is impossible")
    return {
        "heads": heads,
        "head_size": inner // heads,
        "state": source.get("ssm.state_size", int),
        "groups": source.get("ssm.group_count", int, 1),
        "kernel": source.get("ssm.conv_kernel", int),
    }


def _granitehybrid(source: Source) -> dict[str, Any]:
    sizes = _mamba(source)
    rotates = source.get("rope.scaling.finetuned", bool, True)
    recurrent = source.layers_with("ssm_a")
    count = source.get("expert_count", int, 0)
    shared = source.get("feed_forward_length", int)
    return {
        **granite(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "num_local_experts": count,
        "num_experts_per_tok": source.get("expert_used_count", int, 0),
        "shared_intermediate_size": source.get(
            "expert_shared_feed_forward_length", int, shared
        ),
        "position_embedding_type": "rope" if rotates else "nope",
        "layer_types": [
            "mamba" if i in recurrent else "attention" for i in range(source.layers)
        ],
        "mamba_n_heads": sizes["heads"],
        "mamba_d_head": sizes["head_size"],
        "mamba_d_state": sizes["state"],
        "mamba_n_groups": sizes["groups"],
        "mamba_d_conv": sizes["kernel"],
        "mamba_expand": sizes["heads"]
        * sizes["head_size"]
        // source.get("embedding_length", int),
        "mamba_conv_bias": source.has_tensor("ssm_conv1d.bias"),
        "mamba_proj_bias": source.has_tensor("ssm_in.bias"),
    }


def _falcon_h1(source: Source) -> dict[str, Any]:
    """Its multipliers are in the weights."""
    if "output.weight" not in source.tensors:
        raise source.error(
            "falcon-h1 without a head of its own is not supported: its multipliers are "
            "lost"
        )
    sizes = _mamba(source)
    return {
        **rms(source),
        "attention_bias": source.has_tensor("attn_q.bias"),
        "mlp_bias": source.has_tensor("ffn_up.bias"),
        "projectors_bias": source.has_tensor("ssm_out.bias"),
        "mamba_n_heads": sizes["heads"],
        "mamba_d_head": sizes["head_size"],
        "mamba_d_ssm": sizes["heads"] * sizes["head_size"],
        "mamba_d_state": sizes["state"],
        "mamba_n_groups": sizes["groups"],
        "mamba_d_conv": sizes["kernel"],
        "mamba_conv_bias": source.has_tensor("ssm_conv1d.bias"),
        "mamba_proj_bias": source.has_tensor("ssm_in.bias"),
        "mamba_rms_norm": source.has_tensor("ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "pad_token_id": None,
    }


def _nemotron_h(source: Source) -> dict[str, Any]:
    sizes = _mamba(source)
    kinds = {"M": "ssm_a", "*": "attn_q.weight", "-": "ffn_up.weight"}
    kinds["E"] = "ffn_up_exps.weight"
    layers = {kind: source.layers_with(name) for kind, name in kinds.items()}
    pattern = "".join(
        kind for i in range(source.layers) for kind in kinds if i in layers[kind]
    )
    if len(pattern) != source.layers:
        raise source.error("a layer is of no known kind, or of more than one")
    if "E" not in pattern:  # settings without effect
        for key in ("count", "used_count", "group_count", "group_used_count"):
            source.get(f"expert_{key}", int, 0)
    return {
        "layer_norm_epsilon": source.get(
            "attention.layer_norm_epsilon", float, rms_epsilon(source)
        ),
        "hybrid_override_pattern": pattern,
        "attention_bias": source.has_tensor("attn_q.bias"),
        "mlp_bias": source.has_tensor("ffn_up.bias"),
        "mamba_num_heads": sizes["heads"],
        "mamba_head_dim": sizes["head_size"],
        "ssm_state_size": sizes["state"],
        "n_groups": sizes["groups"],
        "conv_kernel": sizes["kernel"],
        "use_conv_bias": source.has_tensor("ssm_conv1d.bias"),
        "use_bias": source.has_tensor("ssm_in.bias"),
        "mamba_proj_bias": source.has_tensor("ssm_in.bias"),
        "pad_token_id": None,
    }


def _nemotron_h_moe(source: Source) -> dict[str, Any]:
    count, used = routing(source, SIGMOID)
    return {
        **_nemotron_h(source),
        "n_routed_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
        "moe_shared_expert_intermediate_size": source.get(
            "expert_shared_feed_forward_length", int
        ),
        "n_shared_experts": source.get("expert_shared_count", int),
        "norm_topk_prob": source.get("expert_weights_norm", bool, True),
        "routed_scaling_factor": source.get("expert_weights_scale", float, 1.0),
        "n_group": source.get("expert_group_count", int, 1),
        "topk_group": source.get("expert_group_used_count", int, 1),
    }


def _lfm2(source: Source) -> dict[str, Any]:
    attention = source.layers_with("attn_q.weight")
    return {
        "norm_eps": rms_epsilon(source),
        "conv_L_cache": source.get("shortconv.l_cache", int),
        "conv_bias": source.has_tensor("shortconv.in_proj.bias"),
        "block_auto_adjust_ff_dim": False,
        "layer_types": [
            FULL if i in attention else "conv" for i in range(source.layers)
        ],
    }


def _lfm2moe(source: Source) -> dict[str, Any]:
    count, used = routing(source, SIGMOID)
    settings = _lfm2(source)
    del settings["block_auto_adjust_ff_dim"]
    return {
        **settings,
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": source.get("expert_feed_forward_length", int),
        "num_dense_layers": source.get("leading_dense_block_count", int, 0),
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": source.has_tensor("exp_probs_b.bias"),
    }


recurrent = partial(Architecture, dtype="bfloat16")
nemotron_h = partial(recurrent, interleaved=True, layers="backbone.layers")
RECURRENT = {
    "lfm2": recurrent("lfm2", _lfm2, SHORT_CONVOLUTION),
    "lfm2moe": recurrent("lfm2_moe", _lfm2moe, SHORT_CONVOLUTION | LFM2_EXPERTS),
    "granitehybrid": recurrent(
        "granitemoehybrid", _granitehybrid, mamba("mamba") | GRANITE, interleaved=True
    ),
    "falcon-h1": recurrent(
        "falcon_h1",
        _falcon_h1,
        {
            **mamba("mamba"),
            "output_norm": "model.final_layernorm",
            "ffn_norm": "pre_ff_layernorm.weight",  # the whole name
            "ffn_norm.weight": "pre_ff_layernorm.weight",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
        },
    ),
    "nemotron_h": nemotron_h("nemotron_h", _nemotron_h, NEMOTRON_H),
    "nemotron_h_moe": nemotron_h("nemotron_h", _nemotron_h_moe, NEMOTRON_H),
}
