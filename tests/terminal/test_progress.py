"""Progress where it is shown: lines of a pipe by a clock of ours, a cell of a notebook, bars, and what is left."""

from __future__ import annotations

import re
import sys
from io import StringIO
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from glm_export.progress import Bars, Cell, Lines, NullProgress, duration, shown


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pipe_has_a_line_where_a_stage_begins_and_ends_and_few_between() -> None:
    clock, lines = Clock(), list[str]()
    advance = Lines(lines.append, clock).task("layers", 100)
    assert lines == ["layers: begun"]
    for _ in range(100):
        clock.now += 1
        advance(1)
    assert lines[1] == "layers: 5%, 5.0 s so far, about 95 s left"
    assert [line.split(",")[0] for line in lines[2:-1]] == ["layers: 35%", "layers: 65%", "layers: 95%"]
    assert lines[-1] == "layers: done in 100 s"
    advance(1)
    assert len(lines) == 6


def test_stages_stand_side_by_side_and_one_without_work_is_done() -> None:
    clock, lines = Clock(), list[str]()
    both = Lines(lines.append, clock)
    first, second = both.task("weights", 2), both.task("graph", 1)
    both.task("nothing", 0)
    second(1)
    first(2)
    assert lines == [
        "weights: begun", "graph: begun", "nothing: begun", "nothing: done in 0.0 s", "graph: done in 0.0 s",
        "weights: done in 0.0 s",
    ]  # fmt: skip


def test_a_terminal_has_bars_that_say_what_is_left() -> None:
    console = Console(force_terminal=True, width=100, file=StringIO(), record=True)
    bars = Bars(console)
    advance = bars.task("layers [1]", 4)
    advance(1)
    console.print(bars.bars.get_renderable())
    assert re.search(r"layers \[1\] .* 25% .* about .* left", console.export_text())


def test_a_bar_fits_60_columns_and_one_that_is_done_stops_counting() -> None:
    console = Console(force_terminal=True, width=60, file=StringIO(), record=True)
    clock = Clock()
    bars = Bars(console)
    bars.bars.get_time = clock
    weights, graph = bars.task("source hashes", 1), bars.task("graph", 3)
    clock.now += 2
    weights(1)
    graph(1)
    clock.now += 20
    console.print(bars.bars.get_renderable())
    first, second = console.export_text().splitlines()
    assert re.fullmatch(r"source hashes \S+ 100% 2\.0 s +", first)
    assert re.fullmatch(r"graph +\S+ +33% 22 s, about 44 s left *", second)


def test_a_notebook_has_one_cell_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def display(bundle: dict[str, str], **_: Any) -> Any:
        told.append(bundle["text/plain"])
        return SimpleNamespace(update=lambda new, **_: told.append(new["text/plain"]))

    shell = type("ZMQInteractiveShell", (), {})()
    package, room = ModuleType("IPython"), ModuleType("IPython.display")
    package.__dict__["get_ipython"], room.__dict__["display"] = lambda: shell, display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", room)
    with shown() as progress:
        assert isinstance(progress, Cell)
        progress.task("layers", 2)(2)
    assert told[0].endswith("layers: begun")
    assert re.fullmatch("█{20} layers: done in .* s", told[-1])


def test_elsewhere_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as progress:
        progress.task("layers", 1)(1)
    assert capsys.readouterr().err == "layers: begun\nlayers: done in 0.0 s\n"
    NullProgress().task("layers", 1)(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (75, "75 s"), (540, "9 min"), (11520, "3.2 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
