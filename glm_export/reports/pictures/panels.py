"""Programs beside each other: a row for each, a panel for each figure that is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm_export.reports.axes import grid, logarithmic, short
from glm_export.reports.colours import SERIES, colour
from glm_export.reports.pictures.sources import Measured
from glm_export.reports.records import Column, Table, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure. ``log``: over powers of ten; ``times``: from what is kept to what is shown."""

    key: str
    title: str
    log: bool = False
    times: float = 1


PANELS = (
    Panel("bytes", "size, MB", times=1e-6),
    Panel("kl", "KL, nats a token", log=True),
    Panel("perplexity_ratio", "perplexity, times"),
    Panel("prefill_tokens_s", "prompts, tokens/s"),
    Panel("decode_tokens_s", "decoding, tokens/s"),
    Panel("peak_anonymous_bytes", "memory, MB", times=1e-6),
)
SMALLEST_SHOWN = 1e-4
"""Of the largest, on a logarithmic axis: a KL of nothing but the last bits would be most of it."""
DRAWN = ("bytes", "kl", "prefill_tokens_s", "decode_tokens_s")
"""Of those that are known; where none of them is, all. The table has every one."""


def value_of(program: Measured, panel: Panel) -> float | None:
    """What is known, in the panel's unit."""
    kept = program.bytes if panel.key == "bytes" else program.numbers.get(panel.key)
    return None if kept is None else kept * panel.times


def known(programs: Sequence[Measured]) -> list[Panel]:
    """Panels that any program has a figure for."""
    return [panel for panel in PANELS if any(value_of(program, panel) is not None for program in programs)]


def table_of(programs: Sequence[Measured]) -> Table:
    """A row a program, in the panels' units."""
    panels = known(programs)
    return Table(
        title="Programs",
        columns=(Column(name="program", numeric=False), *(Column(name=panel.title) for panel in panels)),
        rows=tuple((program.name, *(value_of(program, panel) for panel in panels)) for program in programs),
    )


def filling(programs: Sequence[Measured]) -> Callable[[Figure, bool], None]:
    """What draws them."""
    shown = [panel for panel in known(programs) if panel.key in DRAWN] or known(programs)
    return lambda drawn, _: _fill(drawn, programs, shown)


def height_of(programs: Sequence[Measured]) -> float:
    """Inches."""
    return 0.9 + 0.25 * len(programs)


def _fill(drawn: Figure, programs: Sequence[Measured], panels: Sequence[Panel]) -> None:
    places = list(range(len(programs)))
    every = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    every[0].set_yticks(places, [short(program.name, narrow=False) for program in programs])
    every[0].set_ylim(len(programs) - 0.5, -0.5)
    for number, (axes, panel) in enumerate(zip(every, panels, strict=True)):
        _panel(axes, panel, [value_of(program, panel) for program in programs], SERIES[number % len(SERIES)])


def _panel(axes: Axes, panel: Panel, values: Sequence[float | None], name: str) -> None:
    from matplotlib.ticker import LogLocator

    finite = [value for value in values if value is not None and math.isfinite(value)]
    above = [value for value in finite if value > 0]
    if panel.log and above:
        logarithmic(axes, "x", max(min(above), max(above) * SMALLEST_SHOWN), max(above) * 4)
        axes.xaxis.set_major_locator(LogLocator(base=10, numticks=3))
    else:
        axes.set_xlim(0, max([*above, 1e-12]) * 1.45)
    left, right = axes.get_xlim()
    start = left if panel.log else 0.0
    for place, value in enumerate(values):
        end = left if value is None or value != value else min(max(value, left), right)
        if value is not None:
            axes.barh(place, end - start, left=start, height=0.6, color=colour(name))
        axes.annotate(
            figure(value),
            (end, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            color=colour("ink"),
            annotation_clip=False,
        )
    axes.set_title(panel.title, loc="left", color=colour("ink"))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=panel.log)
    grid(axes, "x")
