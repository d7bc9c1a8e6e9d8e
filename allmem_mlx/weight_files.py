"""Files that hold a model's weights, and the index that says which."""

import json
from pathlib import Path
from typing import Any

from .errors import AllMemError, reason
from .hub import remedy


def read_json(file: Path) -> dict[str, Any]:
    """Reads an object.

    Raises:
        AllMemError: if the file cannot be read or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AllMemError(f"{file} cannot be read: {reason(error)}") from None
    if not isinstance(value, dict):
        raise AllMemError(f"{file} does not hold an object")
    return value


def indexed_files(index: Path) -> list[Path]:
    """The weight files that an index names.

    Args:
        index (Path): ``model.safetensors.index.json``, for one.

    Raises:
        AllMemError: if the index is damaged, or names a file that is not beside it.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise AllMemError(f"{index} has no weight_map; {remedy(index)}")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    files = (file for file in index.parent.glob(f"*{suffix}") if file.is_file())
    present = {file.name for file in files}
    for name in names.values():
        if not isinstance(name, str) or name not in present:
            raise AllMemError(
                f"{index} names {readable(name)}, which is not in its folder; "
                f"{remedy(index)}"
            )
    return [index.parent / name for name in dict.fromkeys(names.values())]


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


def readable(name: Any) -> str:
    """A name that a file gives, to be told to the user in one line."""
    text = str(name)
    text = text if text.isprintable() and text.strip() else repr(name)
    return text if len(text) <= 120 else text[:120] + "..."
