"""The output of a command that measures: tables, and the files it is asked for."""

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import AllMemError, SettingError


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first one to the left and the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def machine() -> str:
    """The default device in a reader's words: a chip, or a number of cores."""
    import mlx.core as mx

    if mx.default_device() == mx.gpu:
        return str(mx.device_info()["device_name"])
    return f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name the files."""
    add = parser.add_argument
    add("--json", metavar="FILE", help="Write all results to a file")
    add(
        "--plot",
        metavar="FILE.png",
        help="Draw the results, and as FILE-dark.png for dark pages",
    )


def check_output(args: argparse.Namespace) -> None:
    """Refuses files that could not be written, before anything is measured.

    Raises:
        SettingError: if a name is impossible.
        AllMemError: if matplotlib is needed and not installed.
    """
    for flag in ("json", "plot"):
        path = getattr(args, flag)
        if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
            raise SettingError(f"the folder of {path!r} does not exist")
        if path is not None and os.path.isdir(path):
            raise SettingError(f"--{flag} is {path!r}, a folder; name a file")
    if args.plot is not None:
        if not args.plot.endswith(".png"):
            raise SettingError(f"--plot is {args.plot!r}; its name must end in .png")
        if find_spec("matplotlib") is None:
            raise AllMemError("--plot needs matplotlib: pip install 'allmem-mlx[plot]'")


def write_output(
    args: argparse.Namespace,
    result: dict[str, Any],
    plot: Callable[[dict[str, Any], str], None],
) -> None:
    """Writes the files of ``--json`` and ``--plot``.

    Args:
        args: of :func:`add_output`.
        result (dict): all numbers.
        plot (Callable): draws what the JSON file holds.

    Raises:
        AllMemError: if a file cannot be written.
    """
    path = args.json or args.plot
    try:
        if args.json is not None:
            Path(args.json).write_bytes(as_json(result))
        if args.plot is not None:
            path = args.plot
            plot(json.loads(as_json(result)), path)
    except OSError as error:
        raise AllMemError(
            f"{path!r} cannot be written ({error.strerror}); choose another file"
        ) from None


def as_json(result: dict[str, Any]) -> bytes:
    """UTF-8 JSON; a number that is not finite is ``null``."""
    text = json.dumps(_finite(result), ensure_ascii=False, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
