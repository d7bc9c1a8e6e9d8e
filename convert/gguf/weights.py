"""Tensors of a GGUF file as safetensors, a few rows at a time.

Memory is bounded by a batch of rows and not by a tensor or a shard: the output matrix
of a model with a large vocabulary alone has more than a gigabyte.
"""

import json
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
class Weight:
    """A parameter of the model, and the source of its values.

    Args:
        name (str): its name in the model.
        tensor (Tensor): its values in the GGUF file.
        group (int): rows that ``transform`` needs together.
        transform (callable): converts a batch of rows.
    """

    name: str
    tensor: Tensor
    group: int = 1
    transform: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def batches(self) -> Iterator[np.ndarray]:
        rows = max(BATCH // self.tensor.columns // self.group, 1) * self.group
        for start in range(0, self.tensor.rows, rows):
            stop = min(start + rows, self.tensor.rows)
            yield self.transform(self.tensor.read(start, stop))

    def bytes(self, dtype: mx.Dtype) -> int:
        return self.tensor.rows * self.tensor.columns * dtype.size


def _cast(x: np.ndarray, dtype: mx.Dtype, weight: Weight) -> bytes:
    # A copy that MLX may keep: the batch is the caller's.
    y = mx.array(x).astype(dtype)
    if not mx.isfinite(y).all().item():
        raise AllMemError(
            f"{weight.tensor.path}: tensor {weight.tensor.name} has values that "
            "float16 cannot hold; use --dtype bfloat16"
        )
    return np.array(y.view(mx.uint8)).tobytes()


def _write_shard(file: BinaryIO, weights: list[Weight], dtype: mx.Dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + weight.bytes(dtype)
        header[weight.name] = {
            "dtype": NAMES[str(dtype).removeprefix("mlx.core.")],
            "shape": weight.tensor.shape,
            "data_offsets": [start, end],
        }
    write_header(file, header)
    for weight in weights:
        for batch in weight.batches():
            file.write(_cast(batch, dtype, weight))


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
