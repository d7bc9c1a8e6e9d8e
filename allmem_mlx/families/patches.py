"""Patches of mlx-lm's model files where they compute otherwise than transformers.

A patch changes the class of a module, so that its parameters and their names stay as
they are.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope


@cache
def subclass(kind: Any, base: Any) -> type:
    """A class that does what ``kind`` says and all else as ``base``."""
    return type(kind.__name__, (kind, base), {})


def specialize(module: nn.Module, kind: type, base: type | None = None) -> None:
    """Changes the class of a module that exists.

    Args:
        module (nn.Module): the module; its parameters stay as they are.
        kind (type): the class whose methods come first.
        base (type): the class of all other methods. Default: the module's own.
    """
    module.__class__ = subclass(kind, base or type(module))


class _GemmaMLP(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class _Starcoder2MLP(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(nn.gelu_approx(self.c_fc(x)))


def _smallest(x: mx.array, count: int) -> mx.array:
    """Where the smallest numbers are, ``[..., count]``, which has no gradient."""
    return mx.stop_gradient(mx.argpartition(x, kth=count - 1, axis=-1)[..., :count])


@mx.compile
def _select_experts(
    logits: mx.array,
    bias: mx.array,
    count: int,
    groups: int,
    kept_groups: int,
    normed: bool,
    scale: float,
) -> tuple[mx.array, mx.array]:
    """The experts of the highest scores, those of the best groups only, and their
    weights, ``[..., count]``. The bias decides on the choice alone."""
    scores = mx.sigmoid(logits)
    choice = scores + bias
    if kept_groups < groups:
        choice = mx.unflatten(choice, -1, (groups, -1))
        best = mx.topk(choice, 2, axis=-1).sum(axis=-1, keepdims=True)
        left = groups - kept_groups
        worst = mx.argpartition(best, kth=left - 1, axis=-2)[..., :left, :]
        worst = mx.stop_gradient(worst)
        choice = mx.put_along_axis(choice, worst, mx.array(-mx.inf), axis=-2)
        choice = mx.flatten(choice, -2, -1)
    chosen = _smallest(-choice, count)
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    if normed:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, weights * scale


class _SigmoidRouter(nn.Module):
    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return _select_experts(
            x.astype(mx.float32) @ self.weight.T.astype(mx.float32),
            self.e_score_correction_bias,
            self.top_k,
            self.n_group,
            self.topk_group,
            self.norm_topk_prob,
            self.routed_scaling_factor,
        )


class _ExactRouter(nn.Module):
    """A model whose routers keep their precision, as they do in transformers."""

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        inherited = getattr(super(), "cast_predicate", None)
        kept = (
            "mlp.gate.weight",
            "mixer.gate.weight",
            "e_score_correction_bias",
            "expert_bias",
        )

        def cast(path: str) -> bool:
            return not path.endswith(kept) and (inherited is None or inherited(path))

        return cast


class _Ernie45Experts(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        gates = mx.softmax(self.gate(x.astype(mx.float32)), axis=-1, precise=True)
        chosen = _smallest(-gates - self.expert_bias, self.k)
        weights = mx.take_along_axis(gates, chosen, axis=-1)
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)
        y = self.switch_mlp(x, chosen)
        y = (y * weights[..., None]).sum(axis=-2).astype(y.dtype)
        return y if self.shared_experts is None else y + self.shared_experts(x)


class _Gemma3Body(nn.Module):
    def __call__(
        self,
        inputs: mx.array,
        cache: Any = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        h = input_embeddings
        if h is None:
            h = self.embed_tokens(inputs)
        if h.dtype != mx.bfloat16:
            scale = math.sqrt(h.shape[-1])
            h = h * (scale / mx.array(scale, mx.bfloat16).item())
        return super().__call__(inputs, cache, h)  # type: ignore[misc]


def _norm_by_groups(x: mx.array, weight: mx.array, groups: int, eps: float) -> mx.array:
    """RMSNorm of each group of heads, ``[..., D]``."""
    grouped = mx.unflatten(x, -1, (groups, -1))
    return weight * mx.fast.rms_norm(grouped, None, eps).flatten(-2)


class _FalconH1Norm(nn.Module):
    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:
        sizes, gate = (self.n_groups, self.variance_epsilon), nn.silu(gate)
        if self.norm_before_gate:
            return gate * _norm_by_groups(x, self.weight, *sizes)
        return _norm_by_groups(gate * x, self.weight, *sizes)


class _GraniteHybridNorm(nn.Module):
    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:
        return _norm_by_groups(nn.silu(gate) * x, self.weight, self.n_groups, self.eps)


class _JambaMoE(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        scores = mx.softmax(self.router(x), axis=-1, precise=True)
        chosen = _smallest(-scores, self.num_experts_per_tok)
        y = self.switch_mlp(x, chosen)
        return (y * mx.take_along_axis(scores, chosen, axis=-1)[..., None]).sum(axis=-2)


class _Gemma3nAltUp(nn.Module):
    def predict(self, x: mx.array) -> mx.array:
        n, active = self.config.altup_num_inputs, self.config.altup_active_idx
        modalities = self.compute_router_modalities(x[active])
        coefficients = self.prediction_coefs(modalities)
        coefficients = mx.unflatten(coefficients, -1, (n, n)).swapaxes(-1, -2)
        streams = x.astype(mx.float32)
        mixed = streams.transpose(1, 2, 3, 0) @ coefficients
        return (mixed.transpose(3, 0, 1, 2) + streams).astype(x.dtype)

    def correct(self, predictions: mx.array, activated: mx.array) -> mx.array:
        modalities = self.compute_router_modalities(activated)
        coefficients = (self.correction_coefs(modalities) + 1).moveaxis(-1, 0)
        innovation = activated - predictions[self.config.altup_active_idx]
        corrected = innovation * coefficients[..., None] + predictions
        return corrected.astype(activated.dtype)


def rotary(rope: Any, config: dict[str, Any]) -> None:
    """mlx-lm rounds the limits of every yarn, and has the frequencies of long texts
    alone for longrope, whose short ones hold as far as bounded positions reach."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "yarn" and scaling.get("truncate") is False:
        rope._freqs = _yarn_frequencies(rope.dims, config["rope_theta"], scaling)
    if kind == "longrope":
        places = mx.arange(0, rope.dim, 2, dtype=mx.float32) / rope.dim
        rope._freqs = mx.array(scaling["short_factor"]) * config["rope_theta"] ** places
        original = scaling["original_max_position_embeddings"]
        factor = scaling.get("factor") or config["max_position_embeddings"] / original
        scale = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        given = scaling.get("short_mscale") or scaling.get("attention_factor")
        rope._scale = given or scale


def _yarn_frequencies(dims: int, base: float, scaling: dict[str, Any]) -> mx.array:
    """Periods of yarn whose limits are not rounded, ``[dims / 2]``."""
    original = scaling["original_max_position_embeddings"]

    def limit(rotations: float) -> float:
        return (
            dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))
        )

    low = max(limit(scaling.get("beta_fast") or 32), 0)
    high = min(limit(scaling.get("beta_slow") or 1), dims - 1)
    high += 0.001 * (low == high)
    ramp = mx.clip((mx.arange(dims // 2) - low) / (high - low), 0, 1)
    periods = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    return 1 / ((1 - ramp) / periods + ramp / (scaling["factor"] * periods))


def ernie4_5_moe(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm leaves out the bias that takes part in the choice of experts, and computes
    the router in the model's type."""
    specialize(model, _ExactRouter)
    for layer in model.layers:
        if "switch_mlp" in layer.mlp:
            specialize(layer.mlp, _Ernie45Experts)
            layer.mlp.expert_bias = mx.zeros((config["moe_num_experts"],))


def falcon_h1(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm leaves out the factor of the keys, and norms all groups of heads as
    one."""
    for layer in model.layers:
        layer.self_attn.scale *= config["key_multiplier"]
        if "norm" in layer.mamba:
            specialize(layer.mamba.norm, _FalconH1Norm)


def gemma3n(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm has keys and values where a layer reads those of another, and casts and
    clips parameters while it reads."""
    for layer in model.layers:
        specialize(layer.altup, _Gemma3nAltUp)
        if layer.self_attn.is_kv_shared_layer:
            for name in ("k_proj", "v_proj", "k_norm"):
                layer.self_attn.pop(name)


def gemma(model: Any, config: dict[str, Any]) -> None:
    """Gemma's GELU is the tanh approximation; mlx-lm computes the exact one."""
    for layer in model.layers:
        specialize(layer.mlp, _GemmaMLP)


def gemma3(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm rounds the scale of the embedding to bfloat16, whatever the model's
    type."""
    specialize(model.model, _Gemma3Body)


def glm(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm rotates the whole width of a head, and reads no scaling."""
    for layer in model.layers:
        rope = layer.self_attn.rope
        rope.dims = int(rope.dims * config["partial_rotary_factor"])
    scaled_rope(model, config)


def glm4_moe(model: Any, config: dict[str, Any]) -> None:
    """As :func:`scaled_rope` and :func:`sigmoid_router`."""
    scaled_rope(model, config)
    sigmoid_router(model, config)


def granitemoehybrid(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm norms all groups of heads as one."""
    for layer in model.layers:
        if "mamba" in layer:
            layer.mamba.norm.n_groups = layer.mamba.n_groups
            specialize(layer.mamba.norm, _GraniteHybridNorm)


def jamba(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm lets the weights of the chosen experts add up to 1."""
    for layer in model.layers:
        if "router" in layer.feed_forward:
            specialize(layer.feed_forward, _JambaMoE)


def llama4(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm norms queries and keys in layers that do not rotate them, too."""
    for layer in model.layers:
        layer.self_attn.use_qk_norm &= bool(layer.self_attn.use_rope)


def helium(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm makes a head for a model that uses its embedding as one."""
    if config["tie_word_embeddings"]:
        model.pop("lm_head")


def scaled_rope(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm's model file reads no scaling of the rotary embedding."""
    if config["rope_scaling"]:
        for layer in model.layers:
            rope = layer.self_attn.rope
            layer.self_attn.rope = initialize_rope(
                rope.dims,
                config["rope_theta"],
                rope.traditional,
                config["rope_scaling"],
                config["max_position_embeddings"],
            )


def sigmoid_router(model: Any, config: dict[str, Any]) -> None:
    """mlx-lm computes the router in the model's type, gives the experts of groups that
    are left out a score of 0, which a bias below 0 makes the best, and does not norm
    the weight of a single expert."""
    specialize(model, _ExactRouter)
    for layer in model.layers:
        experts = layer["mlp"] if "mlp" in layer else layer["mixer"]
        if "gate" in experts:
            specialize(experts.gate, _SigmoidRouter)


def starcoder2(model: Any, config: dict[str, Any]) -> None:
    """As :func:`gemma`."""
    for layer in model.layers:
        specialize(layer.mlp, _Starcoder2MLP)
