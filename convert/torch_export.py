"""The memory of an AllMem model folder as weights that the PyTorch layer loads."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from allmem_mlx.errors import AllMemError, import_library
from allmem_mlx.files import creating
from allmem_mlx.model import MODEL_TYPE, is_memory
from allmem_mlx.model_folder import load_weights, read_config

from .torch_files import PICKLE_SUFFIXES, SUFFIXES, to_torch

WEIGHTS = "memory.safetensors"  # in a folder


def export_torch(model_path: str | Path, path: str | Path) -> None:
    """Writes the memory of a model as ``--torch-path`` takes it, in its types.

    Args:
        model_path (str | Path): an AllMem model folder.
        path (str | Path): a file to create, whose name ends in ``.safetensors`` or, to
            be written by PyTorch, in ``.pt``, ``.pth`` or ``.bin``. Any other name is a
            folder: ``memory.safetensors`` and a ``config.json`` with the ``allmem``
            settings.

    Raises:
        AllMemError: if the folder is no AllMem model or is damaged, if ``path`` exists
            or cannot be written, or if PyTorch is needed and not installed.
    """
    model_path, path = Path(model_path), Path(path)
    if path.suffix in PICKLE_SUFFIXES:
        import_library("torch", f"{path} needs PyTorch", "torch")
    config = read_config(model_path)
    if config.get("model_type") != MODEL_TYPE:
        raise AllMemError(f"{model_path} is not an AllMem model: it has no memory")
    is_file = path.suffix in SUFFIXES
    with creating(path, Path.touch if is_file else Path.mkdir) as temporary:
        model, _ = load_weights(model_path, {"model_file": None}, lazy=True)
        parameters: Any = tree_flatten(model.parameters())
        memory = {name: x for name, x in parameters if is_memory(name)}
        _write(memory, temporary if is_file else temporary / WEIGHTS)
        if not is_file:
            text = json.dumps({"allmem": config["allmem"]}, indent=2)
            (temporary / "config.json").write_text(text)


def _write(memory: dict[str, mx.array], file: Path) -> None:
    if file.suffix in PICKLE_SUFFIXES:
        import torch

        with file.open("wb") as opened:  # a path would leave its name in the file
            torch.save({name: to_torch(x) for name, x in memory.items()}, opened)
    else:
        mx.save_safetensors(str(file), memory, metadata={"format": "pt"})
