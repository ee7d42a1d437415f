"""Two files whole or not at all, never over another's, and everything that stands against it said before the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glm_export.artifacts.program import OnnxProgram
from glm_export.deployment import extras
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.reports import files
from glm_export.reports.files import require_report
from tests.reports.examples import report
from tests.terminal.test_cli import run

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_both_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    require_report(tmp_path / "new" / "a.html", force=False).write(report())
    assert names(tmp_path / "new") == ["a.html", "a.json"]
    assert json.loads((tmp_path / "new" / "a.json").read_text())["subject"] == "a text"
    assert (tmp_path / "new" / "a.html").read_text().startswith("<!DOCTYPE html>")


def test_a_report_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    require_report(out, force=False).write(report())
    with pytest.raises(InputError, match=r"a\.html exists; give another --report, or --force"):
        require_report(out, force=False)
    require_report(out, force=True).write(report("another"))
    assert "another" in out.read_text()
    out.unlink()
    with pytest.raises(InputError, match=r"a\.json exists"):
        require_report(out, force=False)


@pytest.mark.parametrize("name", ["a.html", "a.json"])
def test_what_is_no_report_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="is no report of glm-export, so --force does not replace it"):
        require_report(tmp_path / "a.html", force=True)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is no report"):
        require_report(tmp_path / "a.html", force=True)


def test_what_comes_meanwhile_stays(tmp_path: Path) -> None:
    """While a verb works somebody else may write the file: ours is dropped, theirs stays, and no half is left."""
    for name in ("a.html", "a.json"):
        asked = require_report(tmp_path / "a.html", force=False)
        (tmp_path / name).write_text("theirs")
        with pytest.raises(InputError, match=f"{name} exists"):
            asked.write(report())
        assert names(tmp_path) == [name]
        assert (tmp_path / name).read_text() == "theirs"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_what_was_there(force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.html"
    if force:
        require_report(out, force=False).write(report())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    asked = require_report(out, force=force)
    take, taken = files._take_name, list[Path]()

    def second_fails(whole: Path, path: Path, **options: bool) -> None:
        if taken:
            raise OSError(28, "No space left on device")
        taken.append(path)
        take(whole, path, **options)

    monkeypatch.setattr(files, "_take_name", second_fails)
    with pytest.raises(OSError, match="No space"):
        asked.write(report("another"))
    assert taken
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.html.partial").write_text("half a page")
    (tmp_path / ".a.json.partial").symlink_to(tmp_path / "elsewhere")
    require_report(tmp_path / "a.html", force=False).write(report())
    assert names(tmp_path) == ["a.html", "a.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", r"should be the name of a page, NAME\.html; found '.*a\.txt'"),
        (".html", "should be the name of a page"),
        ("file/a.html", "is no folder; give another --report"),
        ("source/a.html", "lies in .*source, which it is about"),
        ("source/within/a.html", "lies in .*source, which it is about"),
        ("ranges/a.html", "lies in .*ranges, which it is about"),
    ],
)
def test_places_where_no_report_goes(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        require_report(
            tmp_path / name, force=False, sources=(None, "demo", str(tmp_path / "source"), tmp_path / "ranges")
        )
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == ["file", "source"]


VERBS = {
    "check": ("check", "PROGRAM", "--against", "demo"),
    "quality": ("quality", "PROGRAM", "--against", "demo"),
    "bench": ("bench", "PROGRAM"),
    "calibrate": ("calibrate", "demo", "--out", "OUT"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_library_is_said_before_the_work(
    verb: str, demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"PROGRAM": str(demo_program.folder), "OUT": str(tmp_path / "ranges")}
    words = [given.get(word, word) for word in VERBS[verb]]
    installed = extras.installed
    monkeypatch.setattr(extras, "installed", lambda name: None if name == "matplotlib" else installed(name))
    with pytest.raises(
        EnvironmentMissingError, match=r"a report needs matplotlib, .*; pip install 'glm-export\[report\]'"
    ):
        require_report(tmp_path / "a.html", force=False)
    result = run(*words, "--report", str(tmp_path / "a.html"))
    assert result.exit_code == 3
    assert "pip install 'glm-export[report]'" in " ".join(result.stderr.split())
    assert names(tmp_path) == []
    monkeypatch.setattr(extras, "installed", installed)
    (tmp_path / "a.html").write_text("mine")
    result = run(*words, "--report", str(tmp_path / "a.html"), "--force")
    assert result.exit_code == 2
    assert (tmp_path / "a.html").read_text() == "mine"
    assert names(tmp_path) == ["a.html"]


def test_matplotlib_is_imported_when_a_plot_is_drawn_alone(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from glm_export.reports.files import require_report\n"
        "from tests.reports.examples import report\n"
        "from pathlib import Path\n"
        "asked = require_report(Path(sys.argv[1]), force=False)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "asked.write(report())\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.html")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
