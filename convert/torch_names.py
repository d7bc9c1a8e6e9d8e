"""Names and layouts of memory weights in PyTorch.

A layer of the PyTorch model has the parameters of the MLX layer, under these names:
n heads of width p, h hidden units, k taps, on a model of width D. A parameter is one
tensor, or the parts beside it in this order:

    model.layers.{i}.self_attn.    shape           or in parts
    alpha                          [D]
    memory.in_proj.weight          [3np + 5n, D]   q_proj.weight, k_proj.weight,
                                                   v_proj.weight [np, D] each
                                                   (or qkv_proj.weight [3np, D]),
                                                   lr_proj.weight [3n, D],
                                                   momentum_proj.weight [n, D],
                                                   gate_proj.weight [n, D]
    memory.value_proj.weight       [np, D]         v_proj.weight
    memory.rate_bias               [5n]            lr_proj.bias [3n],
                                                   momentum_proj.bias [n],
                                                   gate_proj.bias [n]
    memory.conv_weight             [3np, k]        conv1d.weight [3np, 1, k], or
                                                   conv_q.weight, conv_k.weight,
                                                   conv_v.weight [np, 1, k] each
    memory.q_norm.weight           [p]
    memory.k_norm.weight           [p]
    memory.w0_gate                 [n, h, p]
    memory.w0_up                   [n, h, p]
    memory.w0_down                 [n, p, h]
    memory.o_norm.weight           [p]
    memory.o_proj.weight           [D, np]

``value_proj`` exists if values are made of the token (``values`` of ``AllMemConfig``);
``in_proj`` then has no rows of v and is ``[2np + 5n, D]``.

The rows of the learning rates are gate, up and down of head 0, then of head 1, and so
on. Names of wrappers (``WRAPPERS``) may appear anywhere in a name, and those of the
model itself (``MODELS``) any number of times at its beginning.
"""

import re

from allmem_mlx.config import AllMemConfig

_RATES = ("memory.lr_proj", "memory.momentum_proj", "memory.gate_proj")
_QKV = [f"memory.{x}_proj.weight" for x in "qkv"]
_CONVOLUTIONS = [f"memory.conv_{x}.weight" for x in "qkv"]
_RATE_WEIGHTS = [f"{name}.weight" for name in _RATES]
_RATE_BIASES = [f"{name}.bias" for name in _RATES]
PARAMETERS = (
    "alpha",
    "memory.in_proj.weight",
    "memory.rate_bias",
    "memory.conv_weight",
    "memory.q_norm.weight",
    "memory.k_norm.weight",
    "memory.w0_gate",
    "memory.w0_up",
    "memory.w0_down",
    "memory.o_norm.weight",
    "memory.o_proj.weight",
)
VALUE = "memory.value_proj.weight"
# The parts that may replace a parameter.
PARTS: dict[str, list[list[str]]] = {
    "memory.in_proj.weight": [
        [*_QKV, *_RATE_WEIGHTS],
        ["memory.qkv_proj.weight", *_RATE_WEIGHTS],
    ],
    "memory.rate_bias": [_RATE_BIASES],
    "memory.conv_weight": [["memory.conv1d.weight"], _CONVOLUTIONS],
}
TOKEN_PARTS = {
    **PARTS,
    "memory.in_proj.weight": [[*_QKV[:2], *_RATE_WEIGHTS]],
    VALUE: [_QKV[2:]],
}
WRAPPERS = {
    "module",
    "base_model",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
MODELS = ("model", "language_model")
_OF_LAYER = re.compile(r"layers\.([0-9]{1,6})\.self_attn\.(alpha|memory\..+)")


def parameters(values: str) -> tuple[str, ...]:
    """The parameters of a layer.

    Args:
        values (str): the source of the values, see ``AllMemConfig``.
    """
    return (*PARAMETERS, VALUE) if values == "token" else PARAMETERS


def shapes(dims: int, config: AllMemConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a layer, and of every part.

    Args:
        dims (int): D, width of the model.
        config (AllMemConfig): sizes of the memory.
    """
    n, p, h, k = config.heads, config.head_dim, config.hidden_dim, config.conv_kernel
    rates = dict(zip(_RATES, (3 * n, n, n), strict=True))
    if config.values == "token":
        projections = {"memory.in_proj.weight": 2 * n * p + 5 * n, VALUE: n * p}
    else:
        projections = {
            "memory.in_proj.weight": 3 * n * p + 5 * n,
            "memory.qkv_proj.weight": 3 * n * p,
        }
    return {
        "alpha": (dims,),
        **{name: (rows, dims) for name, rows in projections.items()},
        **{name: (n * p, dims) for name in _QKV},
        **{f"{name}.weight": (rows, dims) for name, rows in rates.items()},
        "memory.rate_bias": (5 * n,),
        **{f"{name}.bias": (rows,) for name, rows in rates.items()},
        "memory.conv_weight": (3 * n * p, k),
        "memory.conv1d.weight": (3 * n * p, 1, k),
        **{name: (n * p, 1, k) for name in _CONVOLUTIONS},
        "memory.q_norm.weight": (p,),
        "memory.k_norm.weight": (p,),
        "memory.w0_gate": (n, h, p),
        "memory.w0_up": (n, h, p),
        "memory.w0_down": (n, p, h),
        "memory.o_norm.weight": (p,),
        "memory.o_proj.weight": (dims, n * p),
    }


def layout(parameter: str, names: set[str], values: str = "hidden") -> list[str]:
    """The tensors of a parameter: itself, or the layout with the most parts present.

    Args:
        parameter (str): one of ``PARAMETERS``.
        names (set): the tensors of a layer.
        values (str): the source of the values.
    """
    if parameter in names:
        return [parameter]
    parts = TOKEN_PARTS if values == "token" else PARTS
    layouts = [[parameter], *parts.get(parameter, [])]
    return max(layouts, key=lambda parts: len(names.intersection(parts)))


def plain_name(name: str) -> str:
    """A tensor's name without wrappers and without the model at its beginning."""
    steps = [step for step in name.split(".") if step not in WRAPPERS]
    while len(steps) > 1 and steps[0] in MODELS:
        del steps[0]
    return ".".join(steps)


def place(plain: str) -> tuple[int, str] | None:
    """The layer of a memory's tensor, and its name there.

    Args:
        plain (str): see :func:`plain_name`.
    """
    match = _OF_LAYER.fullmatch(plain)
    return (int(match[1]), match[2]) if match else None


def looks_like_memory(plain: str) -> bool:
    """Whether a tensor without a place was probably meant to have one."""
    steps = plain.split(".")
    return "memory" in steps or steps[-1] == "alpha"
