"""Pictures of curves, for light and for dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

Point = tuple[float, float]
End = tuple[str, Point, str]  # of a curve: its name, its last point, its colour


# By the suffix of the file's name: background, text, grid, and curves in order.
THEMES = {
    "": (
        *("#ffffff", "#1f2328", "#d1d9e0"),
        *("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a"),
    ),
    "-dark": (
        *("#0d1117", "#e6edf3", "#30363d"),
        *("#58a6ff", "#ffa657", "#3fb950", "#d2a8ff", "#ff9bce", "#8b949e"),
    ),
}
SIZE = 13  # points, of a picture 8.8 inches wide: legible at 440 pixels


@dataclass(frozen=True)
class Panel:
    """One of the plots of a picture.

    Args:
        title (str): the statement that it makes.
        x, y (str): the quantities, with their units.
        curves (dict): points by name, the most important first; a name without points
            is left out.
        x_log, y_log (bool): whether an axis is logarithmic.
        from_zero (bool): whether the y axis begins at 0.
        dashed (tuple): names of controls.
        scattered (tuple): names of points that no line joins.
    """

    title: str
    x: str
    y: str
    curves: dict[str, list[Point]]
    x_log: bool = True
    y_log: bool = False
    from_zero: bool = False
    dashed: tuple[str, ...] = ()
    scattered: tuple[str, ...] = ()


def draw(panels: Sequence[Panel], caption: str, path: str) -> None:
    """Writes a PNG for light pages and, as ``NAME-dark.png``, one for dark pages.

    Args:
        panels (list): in rows of two if their number is even, else one below another.
        caption (str): what was measured.
        path (str): the file for light pages.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 1 if len(panels) % 2 else 2
    rows = len(panels) // columns
    for suffix, colours in THEMES.items():
        with rc_context(_style(*colours)):
            height = 4.8 if len(panels) == 1 else 3.4 * rows
            layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
            figure = Figure(figsize=(8.8, height), layout=layout, dpi=200)
            axes = figure.subplots(rows, columns, squeeze=False).flat
            ends = [_draw_panel(*pair) for pair in zip(axes, panels, strict=True)]
            figure.supxlabel(caption, size=SIZE - 2, alpha=0.7)
            figure.draw_without_rendering()  # labels must fit into the height it has
            for pair in zip(figure.axes, ends, strict=True):
                _label(*pair)
            figure.savefig(Path(path).with_stem(Path(path).stem + suffix))


def _style(background: str, text: str, grid: str, *curves: str) -> Any:
    from matplotlib.rcsetup import cycler

    names = ("axes.edgecolor", "axes.labelcolor", "text.color")
    return {
        "font.size": SIZE,
        "axes.titlesize": SIZE,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=curves),
        "axes.facecolor": background,
        "figure.facecolor": background,
        "grid.color": grid,
        **dict.fromkeys((*names, "xtick.color", "ytick.color"), text),
    }


def _draw_panel(ax: Any, panel: Panel) -> list[End]:
    """Draws a plot, and returns the ends of its curves."""
    ends: list[End] = []
    for name, points in panel.curves.items():
        if not points:
            continue
        joined = len(points) > 2 and name not in panel.scattered
        (line,) = ax.plot(
            *zip(*points, strict=True),
            linestyle="" if not joined else "--" if name in panel.dashed else "-",
            marker="" if joined and len(points) > 40 else "o",
            linewidth=1.2 if ends else 2.4,
            markersize=5,
            zorder=3 if name in panel.scattered else 2.5 - len(ends) / 10,
        )
        ends.append((name, points[-1], line.get_color()))
    if panel.x_log:
        ax.set_xscale("log", base=2)
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(
            lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"
        )
    else:
        ax.locator_params("x", nbins=5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
    if panel.y_log:
        ax.set_yscale("log")
    if panel.from_zero:
        ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)
    ax.set_xlabel(panel.x)
    ax.set_title(panel.title, pad=SIZE * 2)
    place: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(panel.y, (0, 1), xytext=(0, SIZE / 2), **place)
    return ends


def _label(ax: Any, ends: list[End]) -> None:
    """Writes names beside the ends of curves, where none covers another."""
    to_axes = ax.transScale + ax.transLimits
    ends = sorted(reversed(ends), key=lambda end: end[1][1])
    heights = [to_axes.transform(point)[1] for _, point, _ in ends]
    step = 1.25 * SIZE / 72 * ax.figure.dpi / ax.get_window_extent().height
    # Up from the lowest, and down from the highest; both keep the distance.
    up = list(accumulate(heights, lambda below, y: max(y, below + step)))
    down = [*accumulate(heights[::-1], lambda above, y: min(y, above - step))][::-1]
    for (name, point, colour), low, high in zip(ends, down, up, strict=True):
        ax.annotate(
            name,
            point,
            xytext=(1.04, (low + high) / 2),
            textcoords="axes fraction",
            va="center",
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "color": colour,
                "lw": 0.8,
                "alpha": 0.6,
            },
        )
