"""A report as one HTML page: no script, no address, one block of styles that its own policy names by hash."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export import __version__
from glm_export.errors import one_line
from glm_export.reports.plots import Drawn, draw, draw_claims
from glm_export.reports.records import Bars, HeatMap, Lines, Piece, Report, Spans, figure

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "page"
GENERATOR = "glm-export report"
"""What a page says of who wrote it; no other is ever replaced."""
TEMPLATE, STYLES = "report.html.jinja", "report.css"
BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "": "∅"}
"""Tokens that would not be seen, and what stands for them."""
MOST_TABLE_ROWS = 400


def page(report: Report) -> str:
    """The page. What is equal in the report is equal in the page, to the byte."""
    plots: dict[int, Drawn] = {}
    number = 0
    for section in report.sections:
        for item in section.items:
            if isinstance(item, HeatMap | Lines | Bars | Spans):
                plots[id(item)] = draw(item, f"p{number}")
                number += 1
    styles = (FOLDER / STYLES).read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            report=report,
            claims_plot=draw_claims(report.claims, "c"),
            plot_of=lambda item: plots[id(item)],
            styles=styles,
            policy=policy(styles),
            generator=f"{GENERATOR} {__version__}",
            most_rows=MOST_TABLE_ROWS,
        )
    )


def policy(styles: str) -> str:
    """What a browser lets the page do: be styled by this one block, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def shown_token(piece: Piece) -> str:
    """A token's text as it can be seen; its id where it has none."""
    if piece.text is None:
        return f"#{piece.number}"
    if not piece.text.strip():
        return "".join(BLANKS.get(character, "␣") for character in piece.text) or BLANKS[""]
    return piece.text


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def printing(value: Any) -> Any:
        return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        # Nothing from outside turns the direction of writing, or is there and cannot be seen.
        finalize=printing,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # ``ours``: our own plots and styles alone; all else is escaped.
    environment.filters |= {"figure": figure, "token": shown_token, "ours": Markup}
    return environment
