"""Models with recurrent layers, as llama.cpp stores them: gated DeltaNet, Mamba-2 and
short convolutions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .architecture import POST_ATTENTION, QK_NORMS, Architecture, Names
from .file import Tensor
from .mixtures import (
    EXPERTS,
    GRANITE,
    SHARED_EXPERT,
    STACKED_EXPERTS,
    shared_expert,
)
from .recipes import (
    Layer,
    Recipe,
    convolution,
    experts,
    flat,
    halves,
    logarithm,
    misshapen,
    negative_exponential,
    whole,
)
from .rope import rope_parameters
from .settings import FULL, SIGMOID, check_gating, granite, rms, rms_epsilon, routing
from .source import Source
from .weights import Rows, Weight


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of a gated DeltaNet layer.

    Args:
        keys (int): heads of queries and keys.
        values (int): heads of values, a multiple of ``keys``.
        key_size (int): width of a head of queries or keys.
        value_size (int): width of a head of values.
        kernel (int): taps of the convolution.
    """

    keys: int
    values: int
    key_size: int
    value_size: int
    kernel: int

    @classmethod
    def of(cls, source: Source) -> "DeltaNet":
        """Those of a file.

        Raises:
            AllMemError: if they make no sense.
        """
        keys = source.get("ssm.group_count", int)
        values = source.get("ssm.time_step_rank", int)
        inner = source.get("ssm.inner_size", int)
        size, kernel = (
            source.get("ssm.state_size", int),
            source.get("ssm.conv_kernel", int),
        )
        if (
            min(keys, values, inner, size, kernel) < 1
            or values % keys
            or inner % values
        ):
            raise source.error(
                f"linear attention with {keys} heads of keys and {values} of values, "
                f"of {inner} numbers together, is impossible"
            )
        return cls(keys, values, size, inner // values, kernel)

    @property
    def qk_rows(self) -> int:
        return 2 * self.keys * self.key_size

    @property
    def order(self) -> list[int]:
        """Where llama.cpp has each head of values. In transformers those that belong to
        one head of keys are neighbours; llama.cpp goes through all heads of keys first.
        """
        each = self.values // self.keys
        return [i * self.keys + key for key in range(self.keys) for i in range(each)]

    def value_rows(self, tensor: Tensor, start: int, size: int) -> list[Rows]:
        """Rows of the heads of values, in transformers' order.

        Args:
            tensor (Tensor): the tensor.
            start (int): its first row of values.
            size (int): rows of a head.
        """
        starts = (start + head * size for head in self.order)
        return [Rows(tensor, first, first + size) for first in starts]

    def settings(self) -> dict[str, Any]:
        return {
            "linear_num_key_heads": self.keys,
            "linear_num_value_heads": self.values,
            "linear_key_head_dim": self.key_size,
            "linear_value_head_dim": self.value_size,
            "linear_conv_kernel_dim": self.kernel,
        }


Make = Callable[[DeltaNet, Layer, Tensor], list[Weight]]


def _delta_net(make: Make) -> Recipe:
    """A recipe that needs the sizes of the layer."""
    return lambda layer, x: make(DeltaNet.of(layer.source), layer, x)


def _mixed(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
    """Queries, keys and values, of which the latter are in another order."""
    rows = [Rows(x, 0, sizes.qk_rows)]
    rows += sizes.value_rows(x, sizes.qk_rows, sizes.value_size)
    return [layer.weight("linear_attn.in_proj_qkv.weight", x.shape, rows)]


def _taps(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
    rows = [Rows(x, 0, sizes.qk_rows)]
    rows += sizes.value_rows(x, sizes.qk_rows, sizes.value_size)
    shape = (x.rows, 1, x.columns)
    return [layer.weight("linear_attn.conv1d.weight", shape, rows)]


def _values(name: str, size: Callable[[DeltaNet], int]) -> Recipe:
    """Rows that belong to heads of values."""

    def make(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
        return [layer.weight(name, x.shape, sizes.value_rows(x, 0, size(sizes)))]

    return _delta_net(make)


def _out(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
    """The output, whose columns belong to heads of values."""
    if x.columns != sizes.values * sizes.value_size:
        raise misshapen(x)
    transform = partial(_reorder, order=sizes.order, size=sizes.value_size)
    name = "linear_attn.out_proj.weight"
    return [layer.weight(name, x.shape, whole(x), transform=transform)]


def _vector(name: str, change: Callable[[Tensor, np.ndarray], np.ndarray]) -> Recipe:
    """A number for each head of values."""

    def make(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
        if x.shape != (sizes.values,):
            raise misshapen(x)

        def transform(row: np.ndarray) -> np.ndarray:
            return _reorder(change(x, row), sizes.order, 1)

        return [layer.weight(name, x.shape, whole(x), transform=transform)]

    return _delta_net(make)


def _reorder(x: np.ndarray, order: Sequence[int], size: int) -> np.ndarray:
    """Columns in another order, in groups of ``size``."""
    return x.reshape(len(x), -1, size)[:, list(order)].reshape(x.shape)


def _by_keys(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
    """Queries, keys, values and gates of each head of keys in turn, which llama.cpp has
    apart."""
    gate = layer.take("attn_gate.weight")
    width = sizes.values // sizes.keys * sizes.value_size
    rows = []
    for head in range(sizes.keys):
        for tensor, start, size in (
            (x, 0, sizes.key_size),
            (x, sizes.qk_rows // 2, sizes.key_size),
            (x, sizes.qk_rows, width),
            (gate, 0, width),
        ):
            first = start + head * size
            rows.append(Rows(tensor, first, first + size))
    shape = (x.rows + gate.rows, x.columns)
    return [layer.weight("linear_attn.in_proj_qkvz.weight", shape, rows)]


LINEAR_ATTENTION: Names = {
    **POST_ATTENTION,
    **QK_NORMS,
    "ssm_norm": "linear_attn.norm",
    "attn_qkv.weight": _delta_net(_mixed),
    "attn_gate.weight": _values(
        "linear_attn.in_proj_z.weight", lambda sizes: sizes.value_size
    ),
    "ssm_alpha.weight": _values("linear_attn.in_proj_a.weight", lambda sizes: 1),
    "ssm_beta.weight": _values("linear_attn.in_proj_b.weight", lambda sizes: 1),
    "ssm_conv1d.weight": _delta_net(_taps),
    "ssm_a": _vector("linear_attn.A_log", logarithm),
    "ssm_dt.bias": _vector("linear_attn.dt_bias", lambda tensor, x: x),
    "ssm_out.weight": _delta_net(_out),
}
QWEN3_NEXT: Names = {
    **POST_ATTENTION,
    **QK_NORMS,
    **EXPERTS,
    **SHARED_EXPERT,
    "ssm_norm": "linear_attn.norm",
    "ssm_in": "linear_attn.in_proj_qkvz",  # of old files
    "attn_qkv.weight": _delta_net(_by_keys),
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_conv1d.weight": convolution("linear_attn.conv1d.weight"),
    "ssm_a": negative_exponential("linear_attn.A_log"),
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_out": "linear_attn.out_proj",
}


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
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "ffn_gate_exps.weight": experts("feed_forward.experts.{}.w1.weight"),
    "ffn_up_exps.weight": experts("feed_forward.experts.{}.w3.weight"),
    "ffn_gate_up_exps.weight": halves(
        "feed_forward.experts.{}.w1.weight", "feed_forward.experts.{}.w3.weight"
    ),
    "ffn_down_exps.weight": experts("feed_forward.experts.{}.w2.weight"),
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


def _linear_attention(source: Source) -> dict[str, Any]:
    """Which layers are gated DeltaNet follows from their tensors."""
    source.get("full_attention_interval", int, 0)
    recurrent = source.layers_with("ssm_a")
    return {
        **rms(source),
        **DeltaNet.of(source).settings(),
        "attention_bias": False,
        "layer_types": [
            "linear_attention" if i in recurrent else FULL for i in range(source.layers)
        ],
    }


def _qwen35(source: Source) -> dict[str, Any]:
    settings = _linear_attention(source)
    # Positions of a text are the same in all sections.
    sections = source.get("rope.dimension_sections", list, [])
    if any(type(x) is not int for x in sections):
        raise source.error(
            f"{source.architecture}.rope.dimension_sections = {sections}"
        )
    rope = rope_parameters(source)
    if sections:
        rope["mrope_section"] = sections[:3]
    return {**settings, "rope_parameters": rope}


def _qwen35moe(source: Source) -> dict[str, Any]:
    return {**shared_expert(source), **_qwen35(source)}


def _qwen3next(source: Source) -> dict[str, Any]:
    return {
        **shared_expert(source),
        **_linear_attention(source),
        "norm_topk_prob": True,
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
    count, used = routing(source)
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
    count, used = routing(source)
    check_gating(source, SIGMOID)
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
qwen = partial(recurrent, norm_offset=1.0, partial=True)
RECURRENT = {
    "qwen35": qwen("qwen3_5_text", _qwen35, LINEAR_ATTENTION),
    "qwen35moe": qwen(
        "qwen3_5_moe_text",
        _qwen35moe,
        LINEAR_ATTENTION | STACKED_EXPERTS | SHARED_EXPERT,
    ),
    "qwen3next": qwen("qwen3_next", _qwen3next, QWEN3_NEXT),
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
    "nemotron_h": recurrent(
        "nemotron_h",
        _nemotron_h,
        NEMOTRON_H,
        interleaved=True,
        layers="backbone.layers",
    ),
    "nemotron_h_moe": recurrent(
        "nemotron_h",
        _nemotron_h_moe,
        NEMOTRON_H,
        interleaved=True,
        layers="backbone.layers",
    ),
}
