"""Axes, ticks and legends as every plot has them, and Matplotlib's settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glm_export.reports.colours import colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.", (0, (6, 1.5)), (0, (3, 1, 1, 1)))


def _settings() -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "glm-export",
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.linewidth": 0.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "lines.linewidth": 1.4,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), colour("ink")),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), colour("faint")),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    }


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's own settings are."""
    from matplotlib import style

    with style.context(["default", _settings()]), warnings.catch_warnings():
        # Names that Matplotlib's font cannot measure are text all the same, in the page's fonts.
        warnings.filterwarnings("ignore", "Glyph")
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        yield


def _power(value: float, _: object = None) -> str:
    """A tick of a logarithmic axis."""
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 3 else f"1e{exponent}"


def logarithmic(axes: Axes, axis: str, least: float, most: float) -> None:
    """A logarithmic axis over whole powers of ten, few of them named."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    # Nothing is drawn on the axis itself.
    low, high = math.floor(math.log10(least) - 0.15), math.ceil(math.log10(most))
    high = max(high, low + 1)
    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(10.0**low, 10.0**high)
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(LogLocator(base=10, numticks=6 if high - low > 5 else high - low + 2))
    ticks.set_minor_locator(NullLocator())
    ticks.set_major_formatter(FuncFormatter(_power))


def grid(axes: Axes, axis: str) -> None:
    """Lines behind what is drawn, across one axis."""
    axes.grid(visible=True, axis=axis, color=colour("line"), linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend(drawn: Figure, axes: Axes, columns: int) -> None:
    """Above the axes, where anything has a name."""
    handles, names = (by_rows(found, columns) for found in axes.get_legend_handles_labels())
    if names:
        drawn.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=2.4, columnspacing=1.2)


def by_rows(entries: Sequence[Any], columns: int) -> list[Any]:
    """Entries in the order in which a legend, which fills column by column, shows them row by row."""
    return [entry for column in range(columns) for entry in entries[column::columns]]


def named_ticks(axes: Axes, axis: str, names: Sequence[str], most: int) -> None:
    """At most so many of the names."""
    step = max(1, -(-len(names) // most))
    places = list(range(0, len(names), step))
    getattr(axes, f"set_{axis}ticks")(places, [names[place] for place in places])


def short(name: str, narrow: bool) -> str:
    """A name that fits; its end says more than its beginning."""
    most = 22 if narrow else 40
    return name if len(name) <= most else f"…{name[1 - most :]}"
