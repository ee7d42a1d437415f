"""The notebook of ``examples/``: its code runs, and Jupyter itself executes it where ``make notebook`` put one."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "prove_in_a_notebook.ipynb"
APART = Path(os.environ.get("JUPYTER", Path(sys.prefix) / "jupyter"))
HERE = importlib.util.find_spec("nbconvert") is not None
RECORDS = {
    "checkpoint": "Checkpoint", "program": "OnnxProgram", "report": "CheckReport", "ranges": "Ranges",
    "cost": "QualityVerdict",
}  # fmt: skip
"""What cells end with, and what its table is called."""
POEM = "举头望明月，低头思故乡。"


def code_of(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_of(NOTEBOOK))


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell by cell, without Jupyter; what a cell ends with shows itself as a table."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    tables = []
    for cell in code_of(NOTEBOOK):
        *before, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(before, []), str(NOTEBOOK), "exec"), names)
        if isinstance(last, ast.Expr):
            tables.append(eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)._repr_html_())
        else:
            exec(compile(ast.Module([last], []), str(NOTEBOOK), "exec"), names)
    assert [re.search("<caption>(.*?)</caption>", table)[1] for table in tables] == [*RECORDS.values()]
    assert names["report"].passed
    assert names["cost"].broken == ()
    assert capsys.readouterr().out == f"{POEM}\n"


@pytest.mark.skipif(
    not HERE and not (APART / "nbconvert").is_dir(),
    reason=f"no Jupyter here or in {APART}; make notebook puts it there, JUPYTER= says where it is",
)
def test_jupyter_executes_it(tmp_path: Path) -> None:
    """A kernel of its own: tables, progress as one output that was written over, and nothing on standard error."""
    given = shutil.copy(NOTEBOOK, tmp_path)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, ([] if HERE else [APART]) + [ROOT])), "HOME": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_PLATFORM_DIRS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb", given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [output for cell in code_of(tmp_path / "done.ipynb") for output in cell["outputs"]]
    said = [output for output in outputs if output["output_type"] == "stream"]
    assert [(one["name"], "".join(one["text"])) for one in said] == [("stdout", f"{POEM}\n")]
    tables = ["".join(one["data"]["text/html"]) for one in outputs if one["output_type"] == "execute_result"]
    assert [re.search("<caption>(.*?)</caption>", table)[1] for table in tables] == [*RECORDS.values()]
    shown = ["".join(one["data"]["text/plain"]) for one in outputs if one["output_type"] == "display_data"]
    assert len(shown) == 4
    stages = [line for text in shown for line in text.splitlines()]
    assert stages
    assert all(re.fullmatch(r"█{20} .+: done in .+", line) for line in stages), stages
