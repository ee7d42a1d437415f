"""The verb ``inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # these need torch; showing what they made does not
    pass

from glm_export.terminal.console import size


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """A two-column table; lists go one item a line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), escape(_plain(name, value)))
    console.print(table)


def _plain(name: str, value: Any) -> str:
    if name in ("inputs", "outputs"):
        layers = max((int(item.split(".")[1]) for item in value if "." in item), default=0)
        kept = [item.replace("'", "") for item in value if "." not in item or ".0." in item]
        return "\n".join([*kept, *([f"… and so on, {layers + 1} layers"] if layers else [])])
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {size(item) if name in ('sizes', 'memory') else item}" for key, item in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
