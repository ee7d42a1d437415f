"""Pictures that stand alone: SVG in a theme of its own or its reader's, and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from glm_export.reports.axes import styled
from glm_export.reports.colours import NAMES, painted
from glm_export.reports.svg import embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEMES = ("auto", "light", "dark")
"""``auto``: SVG has both, and its reader's system chooses; PNG is light."""
STYLES = Path(__file__).parents[1] / "page" / "report.css"
FONTS = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
MARK = "glm-export plot"
"""What a picture says of who made it; no other is replaced."""
DOTS = 200
"""An inch, of PNG."""
Fill = Callable[["Figure", bool], None]


@cache
def colours(theme: str) -> dict[str, str]:
    """What each name is in ``light`` or ``dark``: the pairs of the reports' page."""
    blocks = re.findall(r":root \{(.*?)\}", STYLES.read_text(encoding="utf-8"), flags=re.DOTALL)
    pairs = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[THEMES.index(theme) - 1]))
    return {name: pairs[name] for name in NAMES}


def as_png(fill: Fill, width: float, height: float, theme: str) -> bytes:
    """A picture of dots.

    Args:
        fill: draws into a figure.
        width: inches.
        height: the same.
        theme: one of :data:`THEMES`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = colours("light" if theme == "auto" else theme)
    with painted(chosen), styled():
        drawn = Figure(figsize=(width, height), layout="constrained", facecolor=chosen["ground"])
        FigureCanvasAgg(drawn)
        fill(drawn, False)
        written = io.BytesIO()
        drawn.savefig(written, format="png", dpi=DOTS, metadata={"Software": MARK}, facecolor=chosen["ground"])
    return written.getvalue()


def as_svg(fill: Fill, width: float, height: float, theme: str, title: str) -> bytes:
    """A picture of lines and text; see :func:`as_png`. ``title``: said to who cannot see it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with styled():
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        fill(drawn, False)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(written, format="svg", metadata=nothing, transparent=True)
    return _alone(embedded(written.getvalue(), "p"), theme, title).encode()


def _alone(svg: str, theme: str, title: str) -> str:
    """What would stand in a page, with a size, a ground, fonts and colours of its own."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    head, _, rest = svg.partition(">")
    head = head.replace(' aria-hidden="true"', "").replace(' focusable="false"', "")
    wide, high = (round(float(value) * 4 / 3) for value in size.groups())
    styles = f"text{{font-family:{FONTS};white-space:pre}}"
    if theme == "auto":
        styles += f":root{{{_pairs('light')}}}@media(prefers-color-scheme:dark){{:root{{{_pairs('dark')}}}}}"
    text = title.replace("&", "&amp;").replace("<", "&lt;")
    whole = (
        f'{head} width="{wide}" height="{high}" role="img"><!-- {MARK} -->\n<title>{text}</title>\n'
        f'<style>{styles}</style>\n<rect width="100%" height="100%" rx="6" fill="var(--ground)"/>{rest}'
    )
    if theme == "auto":
        return whole
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours(theme)[found[1]], whole)


def _pairs(theme: str) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours(theme).items())
