"""Models whose layers are gated DeltaNet, but for every fourth, as llama.cpp stores
them: Qwen3-Next and Qwen3.5."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .architecture import POST_ATTENTION, QK_NORMS, Architecture, Names
from .file import Tensor
from .mixtures import EXPERTS, SHARED_EXPERT, STACKED_EXPERTS, shared_expert
from .recipes import (
    Layer,
    Recipe,
    convolution,
    logarithm,
    misshapen,
    negative_exponential,
    whole,
)
from .rope import rope_parameters
from .settings import FULL, rms
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


def _mixed(name: str, shape: Callable[[Tensor], tuple[int, ...]]) -> Recipe:
    """Queries, keys and values, of which the latter are in another order."""

    def make(sizes: DeltaNet, layer: Layer, x: Tensor) -> list[Weight]:
        rows = [Rows(x, 0, sizes.qk_rows)]
        rows += sizes.value_rows(x, sizes.qk_rows, sizes.value_size)
        return [layer.weight(name, shape(x), rows)]

    return _delta_net(make)


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
    "attn_qkv.weight": _mixed("linear_attn.in_proj_qkv.weight", lambda x: x.shape),
    "attn_gate.weight": _values(
        "linear_attn.in_proj_z.weight", lambda sizes: sizes.value_size
    ),
    "ssm_alpha.weight": _values("linear_attn.in_proj_a.weight", lambda sizes: 1),
    "ssm_beta.weight": _values("linear_attn.in_proj_b.weight", lambda sizes: 1),
    "ssm_conv1d.weight": _mixed(
        "linear_attn.conv1d.weight", lambda x: (x.rows, 1, x.columns)
    ),
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


qwen = partial(Architecture, norm_offset=1.0, partial=True, dtype="bfloat16")
DELTA_NET = {
    "qwen35": qwen("qwen3_5_text", _qwen35, LINEAR_ATTENTION),
    "qwen35moe": qwen(
        "qwen3_5_moe_text",
        _qwen35moe,
        LINEAR_ATTENTION | STACKED_EXPERTS | SHARED_EXPERT,
    ),
    "qwen3next": qwen("qwen3_next", _qwen3next, QWEN3_NEXT),
}
