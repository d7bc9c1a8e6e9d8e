"""Tensors of a GGUF file as safetensors, a few rows at a time.

Memory is bounded by a batch of rows and not by a tensor or a shard: the output matrix
of a model with a large vocabulary alone has more than a gigabyte.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from allmem_mlx.errors import AllMemError
from allmem_mlx.weight_files import INDEX, split_into_shards, write_header

from .file import Tensor

BATCH = 1 << 22  # values that are in memory at a time
SHARD = 5 << 30  # bytes of a file, as in transformers
NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor in the file.

    Args:
        tensor (Tensor): the tensor.
        start (int): the first row.
        stop (int): the row after the last.
    """

    tensor: Tensor
    start: int
    stop: int


@dataclass(frozen=True)
class Weight:
    """A parameter of the model, and the source of its values.

    Args:
        name (str): its name in the model.
        shape (tuple): its sizes.
        rows (tuple): rows of tensors in the GGUF file, one after the other; all are of
            one length.
        group (int): rows that ``transform`` needs together.
        transform (callable): converts a batch of rows.
        packed (bool): whether it is made of the rows' bytes, and stays bytes.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    group: int = 1
    transform: Callable[[np.ndarray], np.ndarray] = lambda x: x
    packed: bool = False

    @property
    def tensor(self) -> Tensor:
        """The first tensor of its source."""
        return self.rows[0].tensor

    def batches(self) -> Iterator[np.ndarray]:
        """Its values, a few rows at a time."""
        most = max(BATCH // self.tensor.columns // self.group, 1) * self.group
        waiting: list[np.ndarray] = []
        count = 0
        for rows in self.rows:
            start = rows.start
            while start < rows.stop:
                stop = min(start + most - count, rows.stop)
                read = rows.tensor.stored if self.packed else rows.tensor.read
                waiting.append(read(start, stop))
                count += stop - start
                start = stop
                if count == most:
                    yield self.transform(_together(waiting))
                    waiting, count = [], 0
        if count:
            yield self.transform(_together(waiting))

    def bytes(self, dtype: mx.Dtype) -> int:
        return math.prod(self.shape) * (1 if self.packed else dtype.size)


def _together(batches: list[np.ndarray]) -> np.ndarray:
    return batches[0] if len(batches) == 1 else np.concatenate(batches)


def _cast(x: np.ndarray, dtype: mx.Dtype, weight: Weight) -> np.ndarray:
    """The bytes of a batch in a type."""
    if weight.packed:
        return np.ascontiguousarray(x)
    # A copy that MLX may keep: the batch is the caller's.
    y = mx.array(x).astype(dtype)
    if not mx.isfinite(y).all().item():
        raise AllMemError(
            f"{weight.tensor.path}: tensor {weight.tensor.name} has values that "
            "float16 cannot hold; use --dtype bfloat16"
        )
    return np.array(y.view(mx.uint8), copy=False)


def _write_shard(file: BinaryIO, weights: list[Weight], dtype: mx.Dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + weight.bytes(dtype)
        header[weight.name] = {
            "dtype": "U8" if weight.packed else NAMES[str(dtype).split(".")[-1]],
            "shape": weight.shape,
            "data_offsets": [start, end],
        }
    write_header(file, header)
    for weight in weights:
        for batch in weight.batches():
            file.write(_cast(batch, dtype, weight).data)


def write_weights(weights: list[Weight], folder: Path, dtype: mx.Dtype) -> None:
    """Writes ``model.safetensors``, or numbered shards and their index.

    Args:
        weights (list): the parameters of the model.
        folder (Path): an existing folder.
        dtype (mx.Dtype): type to write them in.

    Raises:
        AllMemError: if a tensor cannot be read or does not fit the type.
    """
    shards = split_into_shards(weights, lambda weight: weight.bytes(dtype), SHARD)
    index = {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, dtype)
        index.update({weight.name: name for weight in shard})
    if len(shards) > 1:
        total = {"total_size": sum(weight.bytes(dtype) for weight in weights)}
        text = json.dumps({"metadata": total, "weight_map": index}, indent=2)
        (folder / INDEX).write_text(text)
