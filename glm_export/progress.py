"""How long steps tell how far they are, and who shows it: bars in a terminal, lines in a pipe, a cell of a notebook."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

Advance = Callable[[int], None]
FIRST_SECONDS, LINE_SECONDS = 5.0, 30.0
"""From a stage's beginning to the first line that estimates what is left, and then from line to line, at least."""
CELL_SECONDS = 0.2
BAR = 20


class Progress(Protocol):
    """Something that shows tasks side by side."""

    def task(self, name: str, total: int) -> Advance:
        """Start a task of ``total`` units (bytes or steps); the returned call adds to it."""


class NullProgress:
    """Shows nothing."""

    def task(self, name: str, total: int) -> Advance:  # noqa: ARG002 - the protocol's arguments
        """Start a task nobody sees."""
        return lambda _: None


@dataclass(slots=True)
class Stage:
    """One task: how much of it is done, and since when.

    ``seconds``: it took, once it is done. ``told``: when a line last said so. ``ended``: a line said that it is done.
    """

    name: str
    total: int
    begun: float
    done: int = 0
    seconds: float | None = None
    told: float | None = None
    ended: bool = False

    def said(self, now: float) -> str:
        """Where it is, and when it will be done at the pace it had so far."""
        if self.seconds is not None:
            return f"{self.name}: done in {duration(self.seconds)}"
        passed = now - self.begun
        if not self.done or self.total <= 0:
            return f"{self.name}: begun" if passed < 1 else f"{self.name}: {duration(passed)} so far"
        left = duration(passed * (self.total - self.done) / self.done)
        return f"{self.name}: {self.done / self.total:.0%}, {duration(passed)} so far, about {left} left"


class _Stages(ABC):
    """Tasks that several threads advance; what is shown of a change is up to the class below."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self.stages: list[Stage] = []

    def task(self, name: str, total: int) -> Advance:
        """Begin a stage."""
        with self._lock:
            stage = Stage(name, total, self._clock())
            if total <= 0:
                stage.seconds = 0.0
            self.stages.append(stage)
            self._changed(stage, stage.begun)

        def advance(count: int) -> None:
            with self._lock:
                now = self._clock()
                stage.done += count
                if stage.done >= total and stage.seconds is None:
                    stage.seconds = now - stage.begun
                self._changed(stage, now)

        return advance

    @abstractmethod
    def _changed(self, stage: Stage, now: float) -> None:
        """A stage began, went on or ended; the lock is held."""


class Lines(_Stages):
    """A line where a stage begins and where it ends, and one now and then between: for pipes and logs.

    Args:
        write: takes a line, without its end; standard error if left out.
        clock: seconds.
    """

    def __init__(self, write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._write = write or _to_standard_error

    def _changed(self, stage: Stage, now: float) -> None:
        if stage.told is None:
            self._write(f"{stage.name}: begun")
            stage.told = now - LINE_SECONDS + FIRST_SECONDS
        if stage.ended:
            return
        if stage.seconds is not None or (stage.done and now - stage.told >= LINE_SECONDS):
            self._write(stage.said(now))
            stage.told, stage.ended = now, stage.seconds is not None


class Cell(_Stages):
    """The stages as text in the cell of a notebook, which is written over as they go on.

    Args:
        display: as ``IPython.display.display``.
    """

    def __init__(self, display: Callable[..., Any], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._display, self._told = display, 0.0
        self._handle: Any = None

    def _changed(self, stage: Stage, now: float) -> None:
        if stage.seconds is None and self._handle is not None and now - self._told < CELL_SECONDS:
            return
        self._told = now
        shown = {"text/plain": "\n".join(f"{_bar(each)} {each.said(now)}" for each in self.stages)}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class Bars:
    """A bar for each task, with what is left at the pace so far: for terminals.

    Args:
        console: the terminal's.
        still: draw when something changes and at no other time, so that nothing runs beside what is measured.
    """

    def __init__(self, console: Console, *, still: bool = False) -> None:
        from rich.progress import BarColumn, Progress as RichProgress, TaskProgressColumn, TextColumn

        self.bars = RichProgress(
            TextColumn("{task.description}", style="dim", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            _time_column(),
            console=console,
            transient=True,
            auto_refresh=not still,
        )
        self._still = still

    def task(self, name: str, total: int) -> Advance:
        """Add a bar."""
        identifier = self.bars.add_task(name, total=total)

        def advance(count: int) -> None:
            self.bars.advance(identifier, count)
            if self._still:
                self.bars.refresh()

        return advance


@contextmanager
def shown(console: Console | None = None, *, still: bool = False) -> Iterator[Progress]:
    """Progress where this process can show it: a notebook's cell, bars in a terminal, else lines on standard error.

    ``with shown() as progress: export("demo", "out", progress=progress)``

    Args:
        console: the terminal's; one of standard error if left out.
        still: bars are drawn when something changes, and at no other time.
    """
    display = _notebook()
    if display is not None:
        yield Cell(display)
        return
    if not sys.stderr.isatty():
        # A pipe needs nothing of rich.
        yield Lines()
        return
    from rich.console import Console

    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines()
        return
    made = Bars(console, still=still)
    with made.bars:
        yield made


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``0.4 s``, ``75 s``, ``9 min``, ``3.2 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bar(stage: Stage) -> str:
    full = BAR if stage.total <= 0 else min(BAR, BAR * stage.done // stage.total)
    return "█" * full + "░" * (BAR - full)


def _time_column() -> Any:
    """Time so far and, from the first unit on, what is left: rich's own needs many units to guess from."""
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            # Of a task that is done rich goes on counting.
            passed = (task.finished_time if task.finished else task.elapsed) or 0.0
            if task.finished or not task.completed or not task.total:
                return Text(duration(passed), style="dim")
            left = passed * (task.total - task.completed) / task.completed
            return Text(f"{duration(passed)}, about {duration(left)} left", style="dim")

    # Where room is short the bar gives way, not the time.
    return Times(table_column=Column(no_wrap=True))


def _to_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _notebook() -> Callable[..., Any] | None:
    """IPython's ``display`` where a kernel runs this; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    found: Callable[..., Any] = import_module("IPython.display").display
    return found
