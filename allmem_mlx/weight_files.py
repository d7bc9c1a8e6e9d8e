"""Weight files: safetensors, the index of several files, and their division."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .errors import AllMemError, reason
from .files import read_json
from .hub import remedy

INDEX = "model.safetensors.index.json"
T = TypeVar("T")


def weight_map(index: Path) -> dict[Any, Any]:
    """The file of each tensor, as an index has it.

    Raises:
        AllMemError: if the index is damaged.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise AllMemError(f"{index} has no weight_map; {remedy(index)}")
    return names


def indexed_files(index: Path, pattern: str = "*") -> list[Path]:
    """The weight files that an index names.

    Args:
        index (Path): ``model.safetensors.index.json`` or PyTorch's.
        pattern (str): of the files that are used; others need not be there.

    Raises:
        AllMemError: if the index is damaged, or names a file that is not beside it.
    """
    names = [
        name
        for name in weight_map(index).values()
        if not isinstance(name, str) or fnmatch(name, pattern)
    ]
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    files = (file for file in index.parent.glob(f"*{suffix}") if file.is_file())
    present = {file.name for file in files}
    for name in names:
        if not isinstance(name, str) or name not in present:
            raise AllMemError(
                f"{index} names {readable(name)}, which is not in its folder; "
                f"{remedy(index)}"
            )
    return [index.parent / name for name in dict.fromkeys(names)]


def read_header(file: BinaryIO) -> Any:
    """The header of an open safetensors file, as it is.

    Raises:
        ValueError: if there is none.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > os.fstat(file.fileno()).st_size - 8:
        raise ValueError("the header ends early")
    return json.loads(file.read(size))


def write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    """Writes the header of a safetensors file; the tensors follow it."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def safetensors_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor of a safetensors file.

    Raises:
        AllMemError: if the file is truncated, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header and compares it with the file's length.
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: (tuple(x.get_shape()), x.get_dtype())
                for name, x in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise AllMemError(
            f"{file} is damaged or incomplete ({reason(error)}); {remedy(file)}"
        ) from None


def split_into_shards(
    tensors: Iterable[T], size: Callable[[T], int], limit: int
) -> list[list[T]]:
    """Tensors in groups of at most ``limit`` bytes, or of one larger tensor.

    Args:
        tensors (Iterable): the tensors, in their order.
        size (callable): the bytes of one.
        limit (int): bytes of a group.
    """
    shards: list[list[T]] = [[]]
    total = 0
    for tensor in tensors:
        if shards[-1] and total + size(tensor) > limit:
            shards.append([])
            total = 0
        shards[-1].append(tensor)
        total += size(tensor)
    return shards


def shortlist(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def readable(name: Any) -> str:
    """A name in a file, as one line of a message."""
    text = str(name)
    text = text if text.isprintable() and text.strip() else repr(name)
    return text if len(text) <= 120 else text[:120] + "..."
