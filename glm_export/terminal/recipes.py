"""The verb ``recipes`` and its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from glm_export.calibration.recipe import Recipe

if TYPE_CHECKING:  # these need torch; showing what they made does not
    pass


def show_recipes(console: Console, known: Sequence[Recipe]) -> None:
    """One row a recipe: what it does, what an export with it needs, where it runs."""
    table = Table(box=SIMPLE, show_lines=False, padding=(0, 1))
    table.add_column("recipe", no_wrap=True)
    for name in ("what", "needs", "dialects"):
        table.add_column(name)
    for recipe in known:
        table.add_row(recipe.name, recipe.summary, recipe.needs, " ".join(sorted(recipe.dialects)))
    console.print(table)
