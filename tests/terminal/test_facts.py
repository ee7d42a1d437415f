"""Two columns and folded tables: what is copied stays whole, prose fits, and nothing acts on a terminal."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from click.testing import CliRunner
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.terminal.console import PlainConsole
from glm_export.terminal.frame.tables import Column, columns, show_facts_grid, show_table

HASH = "3badd569cda855e5760b3a0724ab5967c2925f4f2059f0485cd5a694bf6cf007"
TYPED = "pip install 'glm-export[tensorrt]' --extra-index-url https://pypi.nvidia.com"
PROSE = "Tang poems of the 7th to 10th century; selection as in Debian's package fortunes-zh"
ROWS = [("corpus", f"origin: {PROSE}\nsha256: {HASH}"), ("tensorrt", escape(f"not installed; {TYPED}"))]


def drawn(width: int) -> PlainConsole:
    return PlainConsole(width=width, record=True, file=StringIO(), highlight=False)


def test_what_is_copied_stands_on_one_line_and_prose_fits() -> None:
    console = drawn(60)
    show_facts_grid(console, ROWS)
    lines = console.export_text().splitlines()
    assert sum(HASH in line for line in lines) == 1
    (command,) = [line for line in lines if "pip install" in line]
    assert command.strip() == TYPED
    assert all(cell_len(line) <= 60 for line in lines if HASH not in line and line != command)
    assert PROSE in " ".join(" ".join(lines).split())
    # The control: rich's own columns break both.
    table = Table.grid()
    for row in ROWS:
        table.add_row(*row)
    (plain := drawn(60)).print(table)
    assert HASH not in (broken := plain.export_text())
    assert TYPED not in broken


def test_wide_screens_have_a_line_for_each() -> None:
    console = drawn(120)
    show_facts_grid(console, ROWS)
    assert console.export_text().splitlines()[2] == f"tensorrt  not installed; {TYPED}"


def test_folded_rows_show_what_a_terminal_would_act_on() -> None:
    console = drawn(30)
    show_table(console, [Column("label"), *columns("a", "b", number=True)], [["\x1b]0;x", "\x9b2J" * 9, "1" * 25]])
    said = console.export_text()
    assert not {"\x1b", "\x9b"} & {*said}
    assert r"\x1b]0;x" in said
    assert "1" * 25 in said


def test_inspect_says_no_reprs_and_numbers_have_thousands(demo_program: OnnxProgram) -> None:
    said = CliRunner(env={"COLUMNS": "60"}).invoke(cli, ["inspect", str(demo_program.folder)]).output
    facts = {line[:18].strip(): line[18:].strip() for line in said.splitlines()}
    assert (facts["tied head"], facts["vocab size"], facts["parameters"]) == ("no", "2,816", "2,657,216")
    assert "adapters" not in facts
    assert not {"True", "False", "None", "[]", "{}"} & {*said.split()}
    assert str(demo_program.folder) in said


def test_targets_of_deploy_take_what_every_verb_takes(demo_program: OnnxProgram, tmp_path: Path) -> None:
    config = tmp_path / "triton.toml"
    config.write_text('name = "poems"\nmax-batch = 2\n', encoding="utf-8")
    words = ["deploy", "triton", str(demo_program.folder), "--out", str(tmp_path / "models"), "--config", str(config)]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert (tmp_path / "models" / "poems" / "config.pbtxt").is_file()
    config.write_text("max-bacth = 2\n", encoding="utf-8")
    assert "did you mean 'max-batch'?" in CliRunner().invoke(cli, [*words, "--force"]).stderr
