"""The memory of an AllMem model folder as weights that the PyTorch layer loads."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from allmem_mlx.errors import AllMemError, reason
from allmem_mlx.hub import import_torch
from allmem_mlx.model import MODEL_TYPE, is_memory
from allmem_mlx.model_folder import load_weights, read_config

from .new_folder import new_folder
from .torch_files import PICKLES, SUFFIXES, to_torch

WEIGHTS = "memory.safetensors"  # in a folder


def export_torch(model_path: str | Path, path: str | Path) -> None:
    """Writes the memory of a model, in the types it has, as ``--torch-path`` reads it.

    Args:
        model_path (str | Path): an AllMem model folder.
        path (str | Path): a file to create, whose name ends in ``.safetensors`` or, to
            be written by PyTorch, in ``.pt``, ``.pth`` or ``.bin``. Any other name is a
            folder: ``memory.safetensors`` and a ``config.json`` with the ``allmem``
            block.

    Raises:
        AllMemError: if the folder is no AllMem model or is damaged, if ``path`` exists
            or cannot be written, or if PyTorch is needed and not installed.
    """
    model_path, path = Path(model_path), Path(path)
    if path.suffix in PICKLES:
        import_torch(path)
    config = read_config(model_path)
    if config.get("model_type") != MODEL_TYPE:
        raise AllMemError(f"{model_path} is not an AllMem model: it has no memory")
    if os.path.lexists(path):
        raise AllMemError(f"{path} already exists; delete it or choose another name")
    model, _ = load_weights(model_path, {"model_file": None}, lazy=True)
    parameters: Any = tree_flatten(model.parameters())
    memory = {name: x for name, x in parameters if is_memory(name)}
    try:
        if path.suffix in SUFFIXES:
            with _new_file(path) as file:
                _write(memory, file)
        else:
            with new_folder(path) as folder:
                _write(memory, folder / WEIGHTS)
                block = json.dumps({"allmem": config["allmem"]}, indent=2)
                (folder / "config.json").write_text(block)
    except (OSError, RuntimeError) as error:
        raise AllMemError(f"{path} cannot be written: {reason(error)}") from None


def _write(memory: dict[str, mx.array], file: Path) -> None:
    if file.suffix in PICKLES:
        import torch

        torch.save({name: to_torch(x) for name, x in memory.items()}, file)
    else:
        mx.save_safetensors(str(file), memory, metadata={"format": "pt"})


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its name when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent
    ) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.rename(temporary, path)
