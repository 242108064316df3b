"""What the plots of the comparisons have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any


def colors() -> Iterator[Any]:
    """A colour per system, the same in every plot: more than the ten of the default, then again from the first."""
    from matplotlib import colormaps

    return itertools.cycle([*colormaps["tab20"](range(20)), *colormaps["Dark2"](range(8))])


def log_scale(axis: Any) -> None:
    """A logarithmic vertical axis with plain numbers that do not overlap."""
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def new_figure(num_names: int, columns: int = 1, **subplots: Any) -> tuple[Any, Any]:
    """Axes in a row, high enough for a legend of all names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns + 3.5, max(4.5, 0.19 * num_names)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, **subplots)
