"""What a running model really does: its evaluated graph, counted.

MLX hands over every primitive of a graph with the shapes of its inputs and outputs.
Counted are the products of matrices, two operations for each multiplication and
addition, and bytes: each array that was there before once, where a primitive reads it,
and each that is there afterwards and was made anew.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mlx.core as mx
import pytest

PRODUCTS = ("Matmul", "AddMM", "QuantizedMatmul", "GatherMM", "GatherQMM")
EXPERTS = ("GatherMM", "GatherQMM")


@dataclass
class Counts:
    """Of one graph.

    Args:
        operations (int): floating-point, of the products of matrices.
        by_size (Counter): the same by the number of elements of a product's largest
            matrix.
        read, written (int): bytes.
        primitives (Counter): how many of each name.
        multiplied (Counter): how many multiplications, element by element, have given
            an array of each shape.
    """

    operations: int = 0
    by_size: Counter = field(default_factory=Counter)
    read: int = 0
    written: int = 0
    primitives: Counter = field(default_factory=Counter)
    multiplied: Counter = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        return self.read + self.written


def _bytes(array: tuple[str, tuple[int, ...], Any]) -> int:
    _, shape, dtype = array
    return prod(shape) * dtype.size


def count(function: Callable[..., Sequence[mx.array]], *inputs: mx.array) -> Counts:
    """Counts what ``function(*inputs)`` computes; it is traced, not evaluated.

    Args:
        function (Callable): its outputs are what has to be there afterwards. Arrays
            that it uses and are no inputs (weights, a state) must be evaluated.
        inputs (mx.array): their values do not matter.
    """
    nodes: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:  # it cannot be exported
        patch.setattr(mx, "contiguous", lambda x, *_, **__: x)
        mx.export_function(nodes.append, function, *inputs)
    counts = Counts()
    constants: dict[str, int] = {}
    read: set[str] = set()
    made: dict[str, int] = {}
    same: dict[str, str] = {}  # an array that was written into, and what it was before
    for node in nodes:
        if node["type"] == "constants":
            constants = {name: x.nbytes for name, x in node["constants"]}
        if node["type"] != "primitive":
            continue
        name, inside, outside = node["name"], node["inputs"], node["outputs"]
        counts.primitives[name] += 1
        if name in PRODUCTS:
            done = 2 * prod(outside[0][1]) * inside[0][1][-1]
            counts.operations += done
            counts.by_size[max(prod(x[1]) for x in (*inside[:2], *outside))] += done
        if name == "Multiply":
            counts.multiplied[outside[0][1]] += 1
        if name == "Transpose":  # a view
            same[outside[0][0]] = same.get(inside[0][0], inside[0][0])
            continue
        if name in EXPERTS:
            experts, chosen = inside[1][1][0], prod(inside[-1][1])
            for x in inside[1:]:
                if x[1][0] == experts:  # not the indices
                    counts.read += _bytes(x) * min(chosen, experts) // experts
            inside = inside[:1]
        if name == "Gather":  # rows of a table
            counts.read += _bytes(outside[0])
            inside = inside[1:]
        elif name == "SliceUpdate":  # in place: the rest of the array stays
            same[outside[0][0]] = same.get(inside[0][0], inside[0][0])
            made[outside[0][0]] = _bytes(inside[1])
            inside = inside[1:]
        else:
            made.update({x[0]: _bytes(x) for x in outside})
        read.update(same.get(x[0], x[0]) for x in inside)
    counts.read += sum(size for name, size in constants.items() if name in read)
    outputs = next(node["outputs"] for node in nodes if node["type"] == "outputs")
    counts.written = sum(made.get(x[0], made.get(same.get(x[0]), 0)) for x in outputs)
    return counts


def _parts(cache: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for part in cache:
        found += _parts(part.caches) if hasattr(part, "caches") else [part]
    return found


def _arrays(cache: list[Any]) -> list[mx.array]:
    found: list[mx.array | None] = []
    for part in _parts(cache):
        found += part.cache if hasattr(part, "cache") else (part.keys, part.values)
    return [x for x in found if x is not None]


def _fork(cache: Sequence[Any]) -> list[Any]:
    """A cache of its own, with the same arrays."""
    forked = [copy.copy(part) for part in cache]
    for part in forked:
        if hasattr(part, "caches"):
            part.caches = tuple(_fork(part.caches))
        elif hasattr(part, "cache"):
            part.cache = list(part.cache)
        else:  # writing into an array would change that of the other cache
            part.keys, part.values = part.keys[...], part.values[...]
    return forked


def count_step(model: Any, cache: list[Any], tokens: mx.array) -> Counts:
    """Counts what a model does with the tokens that come next, logits included.

    Args:
        model: any mlx-lm model.
        cache (list): of it, after some tokens; it is not changed.
        tokens (mx.array): ``[B, T]``.
    """

    def step(tokens: mx.array) -> list[mx.array]:
        forked = _fork(cache)
        return [model(tokens, cache=forked), *_arrays(forked)]

    return count(step, tokens)
