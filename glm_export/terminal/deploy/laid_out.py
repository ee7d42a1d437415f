"""What the targets say that lay a folder out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from glm_export.terminal.console import RESULTS, size

if TYPE_CHECKING:  # it knows programs, which a line about one need not
    from glm_export.deployment.layouts.layout import LaidOut


def show_laid_out(laid_out: LaidOut) -> None:
    """Where it is, how large, and what somebody should know of it."""
    linked = f", {size(laid_out.linked_bytes)} of it hard links" if laid_out.linked_bytes else ""
    said = f"{laid_out.folder} ({size(laid_out.total_bytes)}{linked})"
    RESULTS.print(f"[green]wrote[/] {escape(said)}, for {laid_out.program}", soft_wrap=True)
    for note in laid_out.notes:
        RESULTS.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
