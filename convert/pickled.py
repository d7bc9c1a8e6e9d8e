"""A folder whose weights are pickles, as one with safetensors."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx

from allmem_mlx.errors import AllMemError
from allmem_mlx.hub import PICKLES, WEIGHTS
from allmem_mlx.weight_files import indexed_files

from .published import own_weights
from .torch_files import Tensor, read_files, wrong_dtype

INDEX = "pytorch_model.bin.index.json"
DTYPES = ("float16", "bfloat16", "float32")
SHARD = 1 << 30  # bytes that are in memory at a time


def pickled_weights(folder: Path) -> list[Path]:
    """The weight files of a folder that has no safetensors.

    Raises:
        AllMemError: if the index names a file that is not there.
    """
    if any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        return []
    if (index := folder / INDEX).is_file():
        return indexed_files(index)
    return sorted(folder.glob(PICKLES))


def unpack(files: list[Path], folder: Path, config: dict[str, Any]) -> list[str]:
    """Writes a copy of a model's folder with its weights as safetensors.

    Args:
        files (list): see :func:`pickled_weights`.
        folder (Path): an existing folder to write to; what is no weight is linked.
        config (dict): the base model's configuration.

    Returns:
        list: names of tensors that the model does without.

    Raises:
        AllMemError: if PyTorch is not installed, or a file is damaged or needs more
            than tensors.
    """
    tensors, others = read_files(files)
    own, extras = own_weights(tensors, config)
    for tensor in own.values():
        if tensor.dtype not in DTYPES:
            raise wrong_dtype(tensor.file, tensor.name, tensor.dtype)
    for file in files[0].parent.iterdir():
        if file not in files and not file.name.endswith(".index.json"):
            (folder / file.name).symlink_to(file.resolve())
    for i, shard in enumerate(_shards(own)):
        arrays = {name: tensor.read() for name, tensor in shard.items()}
        try:
            mx.save_safetensors(str(folder / f"model-{i:05}.safetensors"), arrays)
        except RuntimeError as error:  # MLX says so of a full disk
            raise AllMemError(
                f"{folder.parent} cannot be written to: {error}"
            ) from None
    return [*extras, *others]


def _shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        new = math.prod(tensor.shape) * getattr(mx, tensor.dtype).size
        if shards[-1] and size + new > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += new
    return shards
