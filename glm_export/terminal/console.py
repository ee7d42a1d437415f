"""What a person at a terminal sees: plans, progress, tables, streams. Built with rich."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from glm_export.progress import Advance

if TYPE_CHECKING:  # these need torch; showing what they made does not
    pass


SHOWN_POEMS = ("夜思", "江雪", "登鹳雀楼")


class ProgressBars:
    """Bars on a terminal, nothing where output is piped."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", style="dim"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def task(self, name: str, total: int) -> Advance:
        """Add a bar."""
        identifier = self._bars.add_task(name, total=total)
        return lambda count: self._bars.advance(identifier, count)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def size(count: float) -> str:
    """Bytes for people, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
