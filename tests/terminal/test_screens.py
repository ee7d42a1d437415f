"""What verbs show at 60, 80 and 120 columns: no number cut, no command or path wrapped, all of it within the screen."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import PANELS, VERBS, cli
from glm_export.store import opening
from glm_export.store.cache import CACHE_VARIABLE
from glm_export.terminal.console import ERRORS, MESSAGES, RESULTS
from glm_export.terminal.frame.tables import Column, columns, counted, show_table
from tests.helpers.folder_server import files_of, serving_folder
from tests.helpers.golden_data import Golden
from tests.serving.http.conftest import started

CUT = re.compile(r"\d\S*…")
WIDTHS = (60, 80, 120)


POEM = "千山鸟飞绝，万径人踪灭。"
ASKED = {"custom_id": "one", "method": "POST", "url": "/v1/completions", "body": {"prompt": POEM, "max_tokens": 3}}
ELSEWHERE = {
    "build": "an engine takes TensorRT; its screens are looked at in tests/engines, where TensorRT-RTX is installed",
    "chat": "a conversation has no findings: below",
    "serve": "it ends by a signal: below",
    "top": "it needs that server: below",
}
"""Verbs that are not among the screens, and why."""


def run(width: int, *arguments: object, stdin: str | None = None) -> Result:
    environment = {"COLUMNS": str(width), "NO_COLOR": "1", "TERMINAL_WIDTH": str(width)}
    words = [str(word) for word in arguments]
    with ExitStack() as stack:
        # Rich asks the environment when a console is made, which another test may have been the first to do.
        for each in (RESULTS, MESSAGES, ERRORS):
            stack.enter_context(patch.object(each, "_width", width))
        return CliRunner(env=environment).invoke(cli, words, input=stdin, catch_exceptions=False)


@pytest.fixture
def screens(
    exported: Callable[[str], OnnxProgram],
    demo_program: OnnxProgram,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[tuple[object, ...]]]:
    """Every verb that ends by itself and shows findings."""
    glm, demo = exported("glm").folder, demo_program.folder
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "_opened", {})
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps(ASKED), encoding="utf-8")
    text = ("--corpus", "poems", "--max-samples", "1")
    shown = [
        ("recipes",), ("doctor",), ("doctor", demo), ("inspect", demo), ("inspect", "demo"), ("cache", "list"),
        ("score", glm, "--text", "a", "--pattern", "{} [MASK]", "--labels", "in,on"),
        ("infill", glm, "--text", "hello [MASK]", "--max-new-tokens", "2"),
        ("generate", demo, "--prompt", "千山鸟飞绝，万径人踪灭。"),
        ("check", exported("chatglm2").folder, "--against", Golden("chatglm2").folder),
        ("quality", demo, "--against", "demo", *text),
        ("bench", demo, "--rounds", "1", "--prompt-tokens", "16", "--new-tokens", "2", "--context", "4"),
        ("export", "demo", "--out", tmp_path / "out"), ("certify", tmp_path / "out", "--against", "demo"),
        ("verify", tmp_path / "out"), ("calibrate", "demo", *text, "--out", tmp_path / "ranges"),
        ("plot", tmp_path / "ranges", "--out", tmp_path / "ranges.svg", "--force"),
        ("batch", demo, "--input", requests, "--output", tmp_path / "answers.jsonl"),
        ("deploy", "triton", demo, "--out", tmp_path / "repository"), ("demo", "--out", tmp_path / "demo"),
    ]  # fmt: skip
    with serving_folder(files_of(demo)) as server:
        yield [("fetch", server.url), *shown]


def test_no_verb_cuts_a_number_at_60_columns(screens: list[tuple[object, ...]], tmp_path: Path) -> None:
    shown = {words[0]: run(60, *words) for words in screens}
    for verb, result in shown.items():
        assert result.exit_code in (0, 2 if verb == "verify" else 0), (verb, result.output)
        assert CUT.search(result.output) is None, (verb, result.output)
    # What is printed for copying stands on one line.
    assert f"wrote {tmp_path / 'out'} (" in shown["export"].stderr
    assert "1 request answered in" in shown["batch"].stderr
    assert f"wrote {tmp_path / 'repository'}" in shown["deploy"].stdout
    assert shown["fetch"].stdout.count("\n") == 1
    assert not {*map(str, shown)} & {*ELSEWHERE}
    assert {*map(str, shown), *ELSEWHERE} == {*VERBS}


def test_a_conversation_from_a_pipe_is_its_replies_alone(demo_program: OnnxProgram) -> None:
    result = run(60, "chat", demo_program.folder, stdin=f"{POEM}\n\n")
    assert (result.exit_code, result.stdout) == (0, "孤舟蓑笠翁，独钓寒江雪。\n")


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is the POSIX systems'")
def test_a_server_at_60_columns_says_where_it_is_and_ends_when_it_is_told(demo_program: OnnxProgram) -> None:
    """A process of its own; what it says is looked at by `top` as well."""
    with started(str(demo_program.folder), "-v", columns=60) as (address, process):
        result = run(60, "top", address, "--once", "--interval", "0.1")
        assert result.exit_code == 0
        assert max(map(cell_len, result.stdout.splitlines())) <= 60
        assert CUT.search(result.stdout) is None
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert (process.wait(), "Traceback" in said) == (0, False)
    assert "asked to end" in said
    assert said.splitlines()[-1].endswith("server: ended")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_and_keeps_names_whole(verb: str, width: int) -> None:
    result = run(width, *([verb] if verb else []), "--help")
    assert max(map(cell_len, result.output.splitlines())) <= width
    assert re.search(r"\w…", result.output.replace("URL…", "")) is None
    if verb == "export":
        for name in ("tensorrt", "bfloat16", "int8-weights-block", "int4-int8-prompt", "glm_infilling"):
            assert re.search(rf"(?<![\w-]){name}[,.]", result.output), name
    if verb in ("export", "check", "build"):
        assert all(f"─ {panel} ─" in result.output for panel in ("Options", "Checkpoint", "Always"))


def test_every_verb_has_its_panel() -> None:
    assert sorted(name for names in PANELS.values() for name in names) == sorted(VERBS)


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_a_table_says_every_number_whole_at_any_width(width: int) -> None:
    numbers = [["1.234567e-05", "100.0%", "1,234,567.89 tokens/s", ""], ["9.9e-01", "", "2", "[red]FAIL[/]"]]
    rows = [["a case", *numbers[0]], ["a case", *numbers[1]]]
    heads = [Column("case"), *columns("needed", "top-1", "speed", number=True), Column()]
    console = Console(width=width, record=True, file=StringIO())
    show_table(console, heads, rows, title="a title that is longer than any of the screens " * 4, grouped=True)
    said = console.export_text()
    for cell in ("1.234567e-05", "100.0%", "9.9e-01", "FAIL"):
        assert cell in said
    assert said.count("a case") == 1
    # The control: rich's own table cuts them.
    plain = Console(width=20, record=True, file=StringIO())
    table = Table(*(head.name for head in heads))
    table.add_row(*rows[0])
    plain.print(table)
    assert "1.234567e-05" not in plain.export_text()


def test_counts_have_plurals_and_thousands() -> None:
    assert [counted(number, "layer") for number in (0, 1, 1024)] == ["0 layers", "1 layer", "1,024 layers"]
    assert counted(2, "entry", "entries") == "2 entries"


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_findings_are_one_json_value_on_standard_output(screens: list[tuple[object, ...]]) -> None:
    for words in screens:
        result = run(80, *words, "--json", "-q")
        assert isinstance(json.loads(result.stdout), dict | list), words
        if words[0] != "verify":  # it says what it lacks to judge
            assert result.stderr == "", words


def test_verbs_without_findings_have_no_json() -> None:
    for verb in VERBS:
        has = "--json" in run(80, verb, "--help").output
        assert has == (verb not in ("chat", "serve", "deploy")), verb
    assert "─ Output" in run(80, "deploy", "triton", "--help").output
    refused = run(80, "generate", "demo", "--prompt", "a", "--stream", "--json")
    assert (refused.exit_code, "one of them" in " ".join(refused.stderr.replace("│", " ").split())) == (2, True)
    assert run(80, "top", "http://localhost:1", "--json").exit_code == 2
