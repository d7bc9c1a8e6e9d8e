"""Folders with pickled weights, rewritten with safetensors."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from allmem_mlx.hub import PICKLES, WEIGHTS
from allmem_mlx.weight_files import indexed_files, split_into_shards

from .published import language_model_weights
from .torch_files import PICKLE_INDEX, read_files

SHARD = 1 << 30  # bytes that are in memory at a time


def pickled_weights(folder: Path) -> list[Path]:
    """The weight files of a folder that has no safetensors.

    Raises:
        AllMemError: if the index names a file that is not there.
    """
    if any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        return []
    if (index := folder / PICKLE_INDEX).is_file():
        return indexed_files(index)
    return sorted(folder.glob(PICKLES))


def unpack(files: list[Path], folder: Path, config: dict[str, Any]) -> list[str]:
    """Writes a copy of a model's folder with its weights as safetensors.

    Args:
        files (list): see :func:`pickled_weights`.
        folder (Path): an existing folder to write to; other files are linked.
        config (dict): the base model's configuration.

    Returns:
        list: names of tensors that the model does not use.

    Raises:
        AllMemError: if PyTorch is not installed, or a file is damaged or needs more
            than tensors.
    """
    tensors, others = read_files(files)
    weights, extras = language_model_weights(tensors, config)
    for tensor in weights.values():
        tensor.check_dtype()
    for file in files[0].parent.iterdir():
        if file not in files and not file.name.endswith(".index.json"):
            (folder / file.name).symlink_to(file.resolve())
    shards = split_into_shards(weights.items(), lambda item: item[1].nbytes, SHARD)
    for i, shard in enumerate(shards):
        arrays = {name: tensor.read() for name, tensor in shard}
        mx.save_safetensors(str(folder / f"model-{i:05}.safetensors"), arrays)
    return [*extras, *others]
