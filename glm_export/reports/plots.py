"""Plots of a report's records by Matplotlib, twice each: wide, and for a telephone. Colours are the page's own.

The object interface alone: ``pyplot`` keeps figures and asks for a screen. Nothing in an SVG depends on the day, or
on the machine but for its version of Matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from glm_export.errors import one_line
from glm_export.reports.axes import DASHES, MARKERS, by_rows, grid, legend, logarithmic, named_ticks, short, styled
from glm_export.reports.colours import HEAT, OVER, SERIES, colour
from glm_export.reports.records import Bars, Claim, HeatMap, Lines, Series, Spans, figure
from glm_export.reports.svg import embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = HeatMap | Lines | Bars | Spans
WIDE, NARROW = 7.0, 3.5
"""Inches of a figure; text is 9 points in both."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One plot as it stands in a page."""

    wide: str
    narrow: str


def draw(plot: Plot, prefix: str) -> Drawn:
    """Draw one record.

    Args:
        plot: what.
        prefix: of the ids within, one a plot.
    """
    return _drawn(filling(plot), height_of(plot), prefix)


def filling(plot: Plot) -> Callable[[Figure, bool], None]:
    """What draws a record into a figure, for a telephone where it is told so."""
    drawing: dict[str, Callable[[Figure, Any, bool], None]] = {
        "heat": _heat,
        "lines": _lines,
        "bars": _bars,
        "spans": _spans,
    }
    shown = _shown(plot)
    return lambda figure_, narrow: drawing[plot.kind](figure_, shown, narrow)


def draw_claims(claims: Sequence[Claim], prefix: str) -> Drawn | None:
    """Every claim that has numbers on one axis: what was measured, what is allowed, what a planted defect reads.

    Returns:
        None where none has a bound above 0.
    """
    shown = [_shown(claim) for claim in claims if claim.measured is not None and claim.bound and not claim.at_least]
    if not shown:
        return None
    return _drawn(lambda figure_, narrow: _claims(figure_, shown, narrow), 0.32 * len(shown) + 1.0, prefix)


def _shown(value: Any) -> Any:
    """A record whose texts are lines that print: XML has no other characters."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, tuple):
        return tuple(map(_shown, value))
    if not isinstance(value, Claim | Series | HeatMap | Lines | Bars | Spans):
        return value
    return replace(value, **{field.name: _shown(getattr(value, field.name)) for field in fields(value)})


def _drawn(fill: Callable[[Figure, bool], None], height: float, prefix: str) -> Drawn:
    return Drawn(*(_svg(fill, height, prefix + size, narrow=size == "n") for size in ("w", "n")))


def _svg(fill: Callable[[Figure, bool], None], height: float, prefix: str, *, narrow: bool) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with styled():
        drawn = Figure(figsize=(NARROW if narrow else WIDE, height), layout="constrained")
        FigureCanvasSVG(drawn)
        fill(drawn, narrow)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(written, format="svg", metadata=nothing, transparent=True)
    return embedded(written.getvalue(), prefix)


def height_of(plot: Plot) -> float:
    """Inches."""
    if isinstance(plot, HeatMap):
        return min(6.0, max(1.9, 1.1 + 0.22 * len(plot.rows)))
    if isinstance(plot, Lines):
        return 2.9
    return 0.8 + 0.24 * len(plot.names) + (0.25 if isinstance(plot, Spans) else 0)


# -- one function a kind ----------------------------------------------------------------------------


def heat_name(value: float, bound: float) -> str:
    """The colour of an error beside its bound: half powers of ten below it, one and the rest beyond."""
    if value > bound:
        return OVER[0] if value <= 10 * bound else OVER[1]
    steps = math.floor(2 * math.log10(bound / value)) if value > 0 else len(HEAT)
    return HEAT[max(0, len(HEAT) - 1 - steps)]


def _heat(drawn: Figure, plot: HeatMap, narrow: bool) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    axes = drawn.add_subplot()
    largest = max((v for row in plot.values for v in row if v is not None and math.isfinite(v)), default=1.0)
    bound = plot.bound or largest or 1.0
    runs: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(plot.values):
        for start, end, name in _runs([None if value is None else heat_name(value, bound) for value in row]):
            top, bottom = number - 0.5, number + 0.5
            corners = ((start, top), (end, top), (end, bottom), (start, bottom), (start, top))
            runs.setdefault(name, []).extend((x - 0.5, y) for x, y in corners)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for name, corners_of in sorted(runs.items()):
        # One path a colour: a cell each would make megabytes of a large model.
        path = Path(corners_of, codes * (len(corners_of) // len(codes)))
        axes.add_patch(PathPatch(path, facecolor=colour(name), edgecolor="none", linewidth=0))
    axes.set_xlim(-0.5, len(plot.columns) - 0.5)
    axes.set_ylim(len(plot.rows) - 0.5, -0.5)
    named_ticks(axes, "y", plot.rows, 16)
    named_ticks(axes, "x", plot.columns, 6 if narrow else 14)
    axes.set_xlabel(plot.column_name)
    axes.set_ylabel(plot.row_name)
    _heat_legend(drawn, runs, bound, plot.bound is not None, narrow)


def _runs(names: Sequence[str | None]) -> Iterator[tuple[int, int, str]]:
    """Neighbours of one colour, ``(start, end, colour)``; nothing where there is none."""
    start = 0
    for at in range(1, len(names) + 1):
        if at == len(names) or names[at] != names[start]:
            name = names[start]
            if name is not None:
                yield start, at, name
            start = at


def _heat_legend(drawn: Figure, used: dict[str, Any], bound: float, judged: bool, narrow: bool) -> None:
    from matplotlib.patches import Patch

    columns = 2 if narrow else 5
    below = [(name, bound * 10 ** (-(len(HEAT) - 1 - number) / 2)) for number, name in enumerate(HEAT)]
    shown = [(name, f"up to {figure(most)}") for name, most in below if name in used]
    beyond = ("beyond the bound" if judged else "beyond", "over ten times it")
    shown += [(name, text) for name, text in zip(OVER, beyond, strict=True) if name in used]
    handles = [
        Patch(facecolor=colour(name), edgecolor=colour("faint"), linewidth=0.4, label=text) for name, text in shown
    ]
    drawn.legend(
        handles=by_rows(handles, columns),
        loc="outside upper left",
        ncols=columns,
        handlelength=1.2,
        handleheight=0.9,
        columnspacing=1.0,
    )


def _lines(drawn: Figure, plot: Lines, narrow: bool) -> None:
    axes = drawn.add_subplot()
    values = [max(y, plot.floor) for one in plot.series for y in one.y if y is not None and math.isfinite(y)]
    for number, one in enumerate(plot.series):
        shown = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
        top = max([*values, plot.bound or 0.0, plot.floor]) * 10
        # What is no number stands at the top.
        ys = [top if not math.isfinite(y) else max(y, plot.floor) if plot.log else y for _, y in shown]
        axes.plot(
            [x for x, _ in shown],
            ys,
            color=colour(SERIES[number % len(SERIES)]),
            label=one.name,
            clip_on=False,
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5 if len(shown) < 60 else 2,
            linestyle=DASHES[number % len(DASHES)] if one.connected else "none",
        )
    if plot.bound is not None:
        values.append(plot.bound)
        axes.axhline(plot.bound, color=colour("bad"), linewidth=1.1, linestyle=(0, (6, 3)), label=plot.bound_name)
    if plot.log:
        logarithmic(axes, "y", min(values, default=plot.floor), max(values, default=1.0) * 1.2)
    else:
        axes.set_ylim(bottom=0)
    _whole_numbers(axes, plot, narrow)
    grid(axes, "y")
    axes.set_xlabel(plot.x_name)
    axes.set_ylabel(plot.y_name)
    legend(drawn, axes, 2 if narrow else 4)


def _whole_numbers(axes: Axes, plot: Lines, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if plot.x_names:
        named_ticks(axes, "x", plot.x_names, 6 if narrow else 14)
        return
    places = [x for one in plot.series for x in one.x]
    if places and max(places) == min(places):
        axes.set_xlim(places[0] - 1, places[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if narrow else 10, integer=True, min_n_ticks=1))


def _bars(drawn: Figure, plot: Bars, narrow: bool) -> None:
    axes = drawn.add_subplot()
    places = range(len(plot.names))
    known = [value for value in plot.values if value is not None and math.isfinite(value)]
    marks = [plot.mark] if plot.mark is not None else []
    axes.set_yticks(list(places), [short(name, narrow) for name in plot.names])
    axes.set_ylim(len(plot.names) - 0.5, -0.5)
    if plot.log:
        floor = min((value for value in [*known, *marks] if value > 0), default=1e-12)
        logarithmic(axes, "x", floor, max([*known, *marks], default=1.0) * 1.2)
    else:
        axes.set_xlim(0, max([*known, *marks], default=1.0) * 1.18 or 1.0)
    # What is no number reaches to the end.
    lengths = [min(value or 0, axes.get_xlim()[1]) for value in plot.values]
    axes.barh(list(places), lengths, color=colour("series-0"), height=0.62)
    for place, value, length in zip(places, plot.values, lengths, strict=True):
        axes.annotate(
            figure(value),
            (max(length, axes.get_xlim()[0]), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            color=colour("ink"),
            annotation_clip=False,
        )
    if plot.mark is not None:
        axes.axvline(plot.mark, color=colour("bad"), linewidth=1.1, linestyle=(0, (6, 3)), label=plot.mark_name)
    axes.set_xlabel(plot.value_name)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    legend(drawn, axes, 1 if narrow else 3)


def _spans(drawn: Figure, plot: Spans, narrow: bool) -> None:
    axes = drawn.add_subplot()
    places = list(range(len(plot.names)))
    axes.set_yticks(places, [short(name, narrow) for name in plot.names])
    axes.set_ylim(len(plot.names) - 0.5, -0.5)
    axes.hlines(places, plot.low, plot.high, color=colour("line"), linewidth=3)
    for values, name, number in ((plot.low, plot.low_name, 0), (plot.high, plot.high_name, 1)):
        axes.plot(
            values,
            places,
            linestyle="none",
            marker=MARKERS[number],
            markersize=5,
            color=colour(SERIES[number]),
            label=name,
            clip_on=False,
        )
    known = [value for value in (*plot.low, *plot.high) if value > 0]
    logarithmic(axes, "x", min(known, default=0.1), max(known, default=1.0) * 1.2)
    axes.set_xlabel(plot.value_name)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    legend(drawn, axes, 1 if narrow else 3)


def _claims(drawn: Figure, claims: Sequence[Claim], narrow: bool) -> None:
    axes = drawn.add_subplot()
    places = list(range(len(claims)))
    numbers = [v for c in claims for v in (c.measured, c.bound, c.planted) if v is not None and 0 < v < math.inf]
    floor = 10.0 ** (math.floor(math.log10(min(numbers))) - 1)
    axes.set_yticks(places, [short(claim.name, narrow) for claim in claims])
    axes.set_ylim(len(claims) - 0.5, -0.5)
    logarithmic(axes, "x", floor, max(numbers) * 1.2)
    top = axes.get_xlim()[1]
    for name, values, marker, size, label in (
        ("ink", [claim.bound for claim in claims], "|", 13, "allowed"),
        ("planted", [claim.planted for claim in claims], "X", 6, "with a defect planted"),
    ):
        known = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), ls="none", marker=marker, ms=size, mew=1.6, color=colour(name), label=label
            )
    for passed, name, marker, label in ((True, "good", "o", "measured"), (False, "bad", "s", "measured, failed")):
        known = [
            (min(max(claim.measured or 0.0, floor), top), place)
            for claim, place in zip(claims, places, strict=True)
            if (claim.passed is not False) is passed
        ]
        if known:
            axes.plot(
                *zip(*known, strict=True),
                ls="none",
                marker=marker,
                ms=6,
                color=colour(name),
                label=label,
                clip_on=False,
            )
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    legend(drawn, axes, 2 if narrow else 4)
