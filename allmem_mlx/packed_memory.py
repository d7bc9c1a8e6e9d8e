"""A trained memory as a small file.

Projections have 8 bits per entry, fast weights are bfloat16, all else is float32.
Unpacked, it is a folder for ``allmem_mlx convert --torch-path``.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from .config import AllMemConfig
from .errors import AllMemError, reason

GROUP = 32  # entries of a row that share a scale
LARGEST = 127  # of 8 bits


def pack(memory: dict[str, mx.array], allmem: dict[str, Any], file: Path) -> None:
    """Writes a memory.

    Args:
        memory (dict): parameters by their names in the model.
        allmem (dict): the ``allmem`` settings of its ``config.json``.
        file (Path): the file to write.
    """
    arrays: dict[str, mx.array] = {}
    for name, x in memory.items():
        x = x.astype(mx.float32)
        if name.endswith("proj.weight"):
            groups = x.reshape(len(x), -1, GROUP)
            scales = mx.abs(groups).max(-1, keepdims=True) / LARGEST
            scales = mx.maximum(scales.astype(mx.float16), 1e-7)
            arrays[name] = mx.round(groups / scales).astype(mx.int8).reshape(x.shape)
            arrays[name.removesuffix("weight") + "scales"] = scales[..., 0]
        elif ".w0_" in name:
            arrays[name] = x.astype(mx.bfloat16)
        else:
            arrays[name] = x
    mx.save_safetensors(str(file), arrays, {"allmem": json.dumps(allmem)})


def unpack(file: Path, folder: Path) -> None:
    """Writes a folder for ``allmem_mlx convert --torch-path``.

    Args:
        file (Path): a file of :func:`pack`.
        folder (Path): an existing folder.

    Raises:
        AllMemError: if the file is damaged.
    """
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        allmem = json.loads(metadata["allmem"])
        AllMemConfig.from_dict(allmem)
    except (RuntimeError, KeyError, ValueError) as error:
        raise AllMemError(f"{file} is damaged: {reason(error)}") from None
    memory = {}
    for name, x in arrays.items():
        if name.endswith("proj.weight"):
            scales = arrays[name.removesuffix("weight") + "scales"]
            groups = x.reshape(len(x), -1, GROUP).astype(mx.float32)
            x = (groups * scales[..., None].astype(mx.float32)).reshape(x.shape)
        if not name.endswith(".scales"):
            memory[name] = x.astype(mx.float32)
    mx.save_safetensors(str(folder / "memory.safetensors"), memory)
    (folder / "config.json").write_text(json.dumps({"allmem": allmem}))
