"""How parameters of a model are made of the tensors in a GGUF file.

A recipe is a function of a layer and of one of its tensors. It gives the parameters
whose source the tensor is, with others of the layer, and reads no values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from allmem_mlx.errors import AllMemError

from .file import Tensor
from .source import Source
from .weights import Rows, Weight


@dataclass(frozen=True)
class Layer:
    """A layer of the model, or what is outside of the layers.

    Args:
        source (Source): the file.
        prefix (str): what the names of its tensors start with.
        place (str): what the names of its parameters start with.
        used (set): names of tensors that others took along.
        waiting (set): names of tensors that a tensor must take along.
    """

    source: Source
    prefix: str = ""
    place: str = ""
    used: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)

    def take(self, name: str) -> Tensor:
        """Another of its tensors, which then has its place.

        Raises:
            AllMemError: if there is none.
        """
        name = f"{self.prefix}{name}"
        if name not in self.source.tensors:
            raise self.source.error(f"the GGUF file has no tensor {name}")
        self.used.add(name)
        return self.source.tensors[name]

    def weight(
        self, name: str, shape: Sequence[int], rows: Sequence[Rows], **options: Any
    ) -> Weight:
        """A parameter made of some rows.

        Args:
            name (str): its name in the layer.
            shape (tuple): its sizes.
            rows (list): their source.
            options: further arguments of :class:`Weight`.

        Raises:
            AllMemError: if the tensors do not fit each other.
        """
        columns = {x.tensor.columns for x in rows}
        values = sum((x.stop - x.start) * x.tensor.columns for x in rows)
        outside = any(x.stop > x.tensor.rows for x in rows)
        if len(columns) != 1 or outside or values != math.prod(shape):
            raise misshapen(rows[0].tensor)
        return Weight(f"{self.place}{name}", tuple(shape), tuple(rows), **options)


Recipe = Callable[[Layer, Tensor], list[Weight]]
Transform = Callable[[np.ndarray], np.ndarray]


def misshapen(tensor: Tensor) -> AllMemError:
    return AllMemError(
        f"{tensor.path}: tensor {tensor.name} has the shape {tensor.shape}, which does "
        "not fit the model"
    )


def whole(tensor: Tensor) -> list[Rows]:
    """All rows of a tensor."""
    return [Rows(tensor, 0, tensor.rows)]


def plain(name: str, **options: Any) -> Recipe:
    """The tensor itself."""
    return lambda layer, x: [layer.weight(name, x.shape, whole(x), **options)]


def flat(name: str, transform: Transform = lambda x: x) -> Recipe:
    """The tensor as a vector."""

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        size = x.rows * x.columns
        return [layer.weight(name, (size,), whole(x), transform=transform)]

    return make


def one_row(name: str) -> Recipe:
    """The tensor as a matrix of one row, of which llama.cpp may drop the dimension."""
    return lambda layer, x: [layer.weight(name, (1, x.columns), whole(x))]


def convolution(name: str) -> Recipe:
    """Taps of a convolution that treats each channel by itself."""

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        return [layer.weight(name, (x.rows, 1, x.columns), whole(x))]

    return make


def experts(name: str) -> Recipe:
    """A matrix of each expert, from a stack of them.

    Args:
        name (str): of the parameter, with ``{}`` for the expert's number.
    """

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        count, height, width = _stack(layer, x)
        return [
            layer.weight(
                name.format(i), (height, width), [Rows(x, i * height, (i + 1) * height)]
            )
            for i in range(count)
        ]

    return make


def _stack(layer: Layer, x: Tensor) -> tuple[int, int, int]:
    """How many matrices there are in a tensor, and their sizes."""
    if len(x.shape) != 3 or x.shape[0] != layer.source.get("expert_count", int):
        raise misshapen(x)
    count, height, width = x.shape
    return count, height, width


def halves(upper: str, lower: str) -> Recipe:
    """Two matrices of each expert, which are one below the other.

    Args:
        upper (str): name of the parameter, with ``{}`` for the expert's number.
        lower (str): the same of the other.
    """

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        count, both, width = _stack(layer, x)
        height = both // 2
        if both % 2:
            raise misshapen(x)
        names = [name.format(i) for i in range(count) for name in (upper, lower)]
        return [
            layer.weight(name, (height, width), [Rows(x, i * height, (i + 1) * height)])
            for i, name in enumerate(names)
        ]

    return make


def joined(name: str, *others: str) -> Recipe:
    """Matrices one below the other, for each expert if they are stacks.

    Args:
        name (str): of the parameter.
        others (str): tensors that follow the first.
    """

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        tensors = [x, *map(layer.take, others)]
        *stack, height, width = _same_shape(tensors)
        shape = (*stack, len(tensors) * height, width)
        return [layer.weight(name, shape, _side_by_side(tensors, height))]

    return make


def transposed(name: str, *others: str) -> Recipe:
    """Matrices of each expert as gpt-oss has them: transposed, with their columns in
    turns, or packed as they are, with their rows in turns. Biases are matrices of one
    row.

    Args:
        name (str): of the parameter.
        others (str): tensors whose columns take turns with those of the first.
    """

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        tensors = [x, *map(layer.take, others)]
        shape = _same_shape(tensors)
        if len(shape) == 3 and packed_experts(layer.source):
            return _packed(layer, name, tensors)
        count, height, width = shape if len(shape) == 3 else (shape[0], 1, shape[1])
        group = len(tensors) * height

        def transpose(rows: np.ndarray) -> np.ndarray:
            x = rows.reshape(-1, len(tensors), height, width).transpose(0, 3, 2, 1)
            columns: np.ndarray = x.reshape(-1, width, group)
            return columns

        new = (count, width, group) if len(shape) == 3 else (count, width * group)
        rows = _side_by_side(tensors, height)
        return [layer.weight(name, new, rows, group=group, transform=transpose)]

    return make


def packed_experts(source: Source) -> bool:
    """Whether all experts are of the type in which gpt-oss is published."""
    kinds = {x.kind for name, x in source.tensors.items() if "_exps.weight" in name}
    return kinds == {GGMLQuantizationType.MXFP4}


def _packed(layer: Layer, name: str, tensors: Sequence[Tensor]) -> list[Weight]:
    """Blocks of 32 numbers of 4 bits, and the exponents that are common to each. In a
    byte llama.cpp has the number in the first half of a block, and the one in the
    second; transformers has two neighbours."""
    count, height, width = tensors[0].shape
    blocks, group = width // 32, len(tensors) * height

    def in_turns(rows: np.ndarray) -> np.ndarray:
        x = rows.reshape(-1, len(tensors), height, blocks, 17).swapaxes(1, 2)
        return x.reshape(-1, blocks, 17)

    def exponents(rows: np.ndarray) -> np.ndarray:
        return in_turns(rows)[..., 0]

    def numbers(rows: np.ndarray) -> np.ndarray:
        x = in_turns(rows)[..., 1:]
        x = np.concatenate([x & 15, x >> 4], axis=-1)
        pairs: np.ndarray = x[..., ::2] | x[..., 1::2] << 4
        return pairs

    rows = tuple(_side_by_side(tensors, height))
    shape = (count, group, blocks)
    place = f"{layer.place}{name}"
    return [
        Weight(f"{place}_blocks", (*shape, 16), rows, group, numbers, packed=True),
        Weight(f"{place}_scales", shape, rows, group, exponents, packed=True),
    ]


def _same_shape(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    for x in tensors:
        if x.shape != tensors[0].shape or not 2 <= len(x.shape) <= 3:
            raise misshapen(x)
    return tensors[0].shape


def _side_by_side(tensors: Sequence[Tensor], height: int) -> list[Rows]:
    """For each expert the rows of its first matrix, those of its second, and so on."""
    return [
        Rows(x, start, start + height)
        for start in range(0, tensors[0].rows, height)
        for x in tensors
    ]


def negative_exponential(name: str) -> Recipe:
    """The logarithm of rates that the file has as they are used, below 0."""

    def make(layer: Layer, x: Tensor) -> list[Weight]:
        return flat(name, partial(logarithm, x))(layer, x)

    return make


def logarithm(tensor: Tensor, x: np.ndarray) -> np.ndarray:
    """The logarithm of values that must be below 0."""
    if not (x < 0).all():
        raise AllMemError(
            f"{tensor.path} is damaged: tensor {tensor.name} has values above 0"
        )
    logarithms: np.ndarray = np.log(-x)
    return logarithms
