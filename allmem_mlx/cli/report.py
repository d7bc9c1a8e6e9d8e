"""What a command measured: tables, pictures, and the files that it is asked for."""

import argparse
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AllMemError, SettingError


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first stands left, the others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name the files."""
    add = parser.add_argument
    add("--json", metavar="FILE", help="Write all results to a file")
    add("--plot", metavar="FILE.png", help="Draw the curves")


def check_output(args: argparse.Namespace) -> None:
    """Refuses files that could not be written, before anything is measured.

    Raises:
        SettingError: if a name is impossible.
        AllMemError: if there is nothing to draw with.
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
        check_plotting()


def check_plotting() -> None:
    """
    Raises:
        AllMemError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise AllMemError(
            "--plot needs matplotlib: pip install 'allmem-mlx[plot]'"
        ) from None


def write_output(
    args: argparse.Namespace, result: dict[str, Any], draw: Callable[[], bytes]
) -> None:
    """Writes what ``--json`` and ``--plot`` ask for.

    Args:
        args: of :func:`add_output`.
        result (dict): all numbers.
        draw (Callable): makes the PNG.

    Raises:
        AllMemError: if a file cannot be written.
    """
    if args.json is not None:
        _write(args.json, as_json(result))
    if args.plot is not None:
        _write(args.plot, draw())


def _write(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise AllMemError(
            f"{path!r} cannot be written ({error.strerror}); choose another file"
        ) from None


def as_json(result: dict[str, Any]) -> bytes:
    """UTF-8 JSON; what is not a number is ``null``."""
    text = json.dumps(_sound(result), ensure_ascii=False, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def _sound(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sound(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Panel:
    """One of several pictures side by side.

    Args:
        x, y (str): what is across and up, with their units.
        curves (dict): points by name; names without any are left out.
        x_log, y_log (bool): whether an axis is logarithmic.
        dashed (tuple): names of curves to be told from the others.
    """

    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]]
    x_log: bool = True
    y_log: bool = False
    dashed: tuple[str, ...] = ()


def panels(drawn: list[Panel], title: str) -> bytes:
    """A PNG of curves side by side; no display is needed.

    Args:
        drawn (list): from left to right.
        title (str): what was measured.
    """
    from matplotlib.figure import Figure

    width = 8 if len(drawn) == 1 else 6.5 * len(drawn)
    figure = Figure(figsize=(width, 5), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True
    ):
        for name, points in panel.curves.items():
            if points:
                style = "--" if name in panel.dashed else "-"
                marker = "o" if len(points) < 50 else None
                axes.plot(*zip(*points, strict=True), style, marker=marker, label=name)
        if panel.x_log:
            axes.set_xscale("log", base=2)
        if panel.y_log:
            axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
