"""Tensors of a GGUF file as safetensors, a few rows at a time.

Memory is bounded by a block of rows and not by a tensor or a shard: the output matrix
of a model with a large vocabulary alone has more than a gigabyte.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from allmem_mlx.errors import AllMemError

from .file import Tensor

BLOCK = 1 << 22  # values that are in memory at a time
SHARD = 5 << 30  # bytes of a file, as Hugging Face has it
NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Weight:
    """A parameter of the model, and where its values come from.

    Args:
        name (str): its name in the model.
        tensor (Tensor): its values in the GGUF file.
        group (int): how many rows belong together in ``change``.
        change (callable): what to make of a block of rows.
    """

    name: str
    tensor: Tensor
    group: int = 1
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def blocks(self) -> Iterator[np.ndarray]:
        rows = max(BLOCK // self.tensor.columns // self.group, 1) * self.group
        for start in range(0, self.tensor.rows, rows):
            stop = min(start + rows, self.tensor.rows)
            yield self.change(self.tensor.read(start, stop))

    def bytes(self, dtype: mx.Dtype) -> int:
        return self.tensor.rows * self.tensor.columns * dtype.size


def _cast(x: np.ndarray, dtype: mx.Dtype, weight: Weight) -> bytes:
    # A copy that MLX may keep: the block is the caller's.
    y = mx.array(x).astype(dtype)
    if not mx.isfinite(y).all().item():
        raise AllMemError(
            f"{weight.tensor.path}: tensor {weight.tensor.name} has values that "
            "float16 cannot hold; use --dtype bfloat16"
        )
    return np.array(y.view(mx.uint8)).tobytes()


def _shards(weights: list[Weight], dtype: mx.Dtype) -> list[list[Weight]]:
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.bytes(dtype) > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.bytes(dtype)
    return shards


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
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for weight in weights:
        for block in weight.blocks():
            file.write(_cast(block, dtype, weight))


def write_weights(weights: list[Weight], folder: Path, dtype: mx.Dtype) -> None:
    """Writes ``model.safetensors``, or numbered shards and their index.

    Args:
        weights (list): the parameters of the model.
        folder (Path): an existing folder.
        dtype (mx.Dtype): type to write them in.

    Raises:
        AllMemError: if a tensor cannot be read or written, or does not fit the type.
    """
    shards = _shards(weights, dtype)
    names = [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        try:
            with (folder / name).open("wb") as file:
                _write_shard(file, shard, dtype)
        except OSError as error:
            raise AllMemError(
                f"{folder.parent} cannot be written to: {error}"
            ) from None
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(w.bytes(dtype) for w in weights)},
            "weight_map": {
                weight.name: name
                for name, shard in zip(names, shards, strict=True)
                for weight in shard
            },
        }
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2))
