"""What records show of themselves: a line, and a notebook's table."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glm_export import api, bench, load_session
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.spec.summary import Summarized


class Cells(HTMLParser):
    """Text of a table's cells; a tag inside one would be what a name from a file smuggled in."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


MADE: dict[str, Callable[[OnnxProgram, Checkpoint, Path], Summarized]] = {
    "program": lambda program, checkpoint, out: program,
    "checkpoint": lambda program, checkpoint, out: checkpoint,
    "check": lambda program, checkpoint, out: api.check(program, checkpoint),
    "quality": lambda program, checkpoint, out: api.quality(
        program, checkpoint, corpus="poems", max_samples=2, budget="kl=0.1"
    ),
    "ranges": lambda program, checkpoint, out: api.calibrate(checkpoint, out, corpus="poems", max_samples=2),
    "bench": lambda program, checkpoint, out: bench(program.folder, prompt_tokens=8, context=8, new_tokens=4, rounds=1),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_line_and_a_table(kind: str, demo_program: OnnxProgram, demo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = MADE[kind](demo_program, demo_checkpoint, tmp_path / "out")
    line = repr(made)
    assert "\n" not in line
    assert len(line) < 500
    # No Python shows through.
    assert not any(odd in line for odd in ("{", "[", "None", "PosixPath", "dtype("))
    table = Cells()
    table.feed(made._repr_html_())
    told = made.summary()
    assert table.cells == [cell for row in told.items() for cell in row]
    assert all(f"{name}: {value}" in line for name, value in told.items())


def test_names_from_files_are_text() -> None:
    class Odd(Summarized):
        def summary(self) -> dict[str, str]:
            return {"folder": "<script>alert(1)</script>"}

    table = Cells()
    table.feed(Odd()._repr_html_())
    assert "script" not in table.tags
    assert table.cells[1] == "<script>alert(1)</script>"


def test_a_session_is_a_line(demo_program: OnnxProgram) -> None:
    with load_session(demo_program) as session:
        assert repr(session) == f"<OrtSession of {demo_program.folder}>"
    assert repr(session) == f"<OrtSession of {demo_program.folder}>"
