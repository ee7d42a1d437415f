"""The verbs ``infill`` and ``score``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_export.generation.infilling import LabelScore

if TYPE_CHECKING:  # these need torch; showing what they made does not
    pass


def score_facts(scores: Sequence[LabelScore]) -> list[dict[str, Any]]:
    """Plain values, the likeliest label first."""
    return [asdict(score) | {"mean_log_probability": score.mean} for score in scores]


def show_scores(console: Console, scores: Sequence[LabelScore]) -> None:
    """One row a label, the likeliest first."""
    table = Table(box=SIMPLE)
    table.add_column("label")
    for name in ("tokens", "log-probability", "a token"):
        table.add_column(name, justify="right")
    for score in scores:
        table.add_row(escape(score.label), str(score.tokens), f"{score.log_probability:.3f}", f"{score.mean:.3f}")
    console.print(table)
