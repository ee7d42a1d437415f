"""What long verbs tell while they run: every call, round and byte once, and nothing beside what is measured."""

from __future__ import annotations

import shutil
import time
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from glm_export import api
from glm_export.artifacts.manifest import CARD
from glm_export.artifacts.open import view_of
from glm_export.artifacts.program import MODEL, OnnxProgram
from glm_export.certificates.certify import certify
from glm_export.certificates.verify import verify
from glm_export.cli import cli
from glm_export.performance import measure as measuring
from glm_export.performance.bench import _hand_on, bench
from glm_export.performance.measure import TOLD, measure
from glm_export.performance.report import BenchOptions
from glm_export.progress import Bars
from glm_export.proof.company import ROW_TOKENS
from glm_export.proof.controls import ASKED, GRAPHS
from glm_export.store import opening
from glm_export.store.cache import CACHE_VARIABLE
from tests.helpers.folder_server import files_of, serving_folder
from tests.helpers.stages import Recorded

SHORT = BenchOptions(prompt_tokens=8, context=4, new_tokens=3, rounds=2, threads=1)
WORDS = ("--prompt-tokens", 8, "--context", 4, "--new-tokens", 3, "--rounds", 2, "--threads", 1)


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def stages(result: Result) -> list[str]:
    """Of lines that end a stage, each of which another began."""
    lines = result.stderr.splitlines()
    ended = [line.split(": done in ")[0] for line in lines if ": done in " in line]
    assert [name for name in ended if f"{name}: begun" not in lines] == []
    assert len(lines) == 2 * len(ended), result.stderr
    return ended


@pytest.fixture(scope="module")
def certified(demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "poems"
    shutil.copytree(demo_program.folder, folder)
    assert stages(run("certify", folder, "--against", "demo")) == ["cases", "texts", "rows in company", "files"]
    return folder


# -- what is proven ----------------------------------------------------------------------------------------------------


def test_a_check_counts_what_it_asks(demo_program: OnnxProgram) -> None:
    told = Recorded()
    report = api.check(demo_program, "demo", control=True, progress=told)
    cases = {output.case for output in report.parity.outputs}
    alone = len(ROW_TOKENS)
    assert told.whole() == {
        "cases": 2 * len(cases),
        "controls": len(ASKED) + len(GRAPHS),
        "texts": 3 * len({text.prompt for text in report.greedy.texts}) if report.greedy else 0,
        "rows in company": alone + 2 * (alone + 1),
    }


def test_certify_and_verify_count_the_bytes_they_hash(certified: Path) -> None:
    apart = {"manifest.json"}
    nbytes = sum(path.stat().st_size for path in certified.iterdir() if path.name not in apart)
    again, told = Recorded(), Recorded()
    certify(certified, "demo", progress=again)
    assert again.whole().keys() == {"cases", "texts", "rows in company", "files"}
    assert again.whole()["files"] == nbytes
    assert verify(certified, progress=told).holds
    assert told.whole() == {"files": nbytes}
    assert stages(run("verify", certified)) == ["files"]
    assert run("verify", certified, "-q").stderr == ""


def test_doctor_counts_the_bytes_it_hashes_where_it_is_thorough(demo_program: OnnxProgram, tmp_path: Path) -> None:
    from glm_export.artifacts.manifest import MANIFEST, require_undamaged

    told, folder = Recorded(), demo_program.folder
    require_undamaged(folder / MANIFEST, demo_program.manifest, "export", told)
    # The card is its owner's, and may be another than was written.
    assert told.whole() == {folder.name: sum(demo_program.manifest["sizes"].values()) - (folder / CARD).stat().st_size}
    assert stages(run("doctor", folder, "--thorough")) == [folder.name]
    assert run("doctor", folder, "--thorough", "-q").stderr == ""
    assert run("doctor", folder).stderr == ""
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / MODEL).open("r+b") as file:
        file.write(b"x")
    assert run("doctor", damaged, "--thorough").exit_code == 3


def test_cache_verify_counts_the_bytes_it_hashes(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "_opened", {})
    with serving_folder(files_of(demo_program.folder)) as server:
        view = view_of(server.url)
    told = Recorded()
    assert view.damaged(thorough=True, advance=told.task("files", view.size)) is None
    assert told.whole() == {"files": view.size}
    result = run("cache", "verify")
    assert (result.exit_code, stages(result)) == (0, [view.folder.name])
    assert run("cache", "verify", "-q").stderr == ""


# -- what is measured --------------------------------------------------------------------------------------------------


def test_bench_tells_its_stages_and_rounds(demo_program: OnnxProgram) -> None:
    told = Recorded()
    bench(demo_program.folder, SHORT, progress=told)
    assert told.whole() == {
        "memory's bandwidth": 1,
        "model loaded": 1,
        "rounds": 1 + SHORT.rounds,
        "memory's bandwidth, again": 1,
    }


def test_bench_in_a_pipe_says_stages_as_lines(demo_program: OnnxProgram) -> None:
    result = run("bench", demo_program.folder, *WORDS)
    assert stages(result) == ["memory's bandwidth", "model loaded", "rounds", "memory's bandwidth, again"]
    assert TOLD not in result.output
    # A model that cannot be measured ends in its one line.
    assert "begun" not in run("bench", demo_program.folder, "--rounds", 0).stderr


def test_nothing_is_told_while_a_clock_runs(demo_program: OnnxProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings of the clock between two lines: those of whole sections, which a line within would cut in two."""
    clock, events = time.perf_counter, list[str]()

    def read() -> float:
        events.append("clock")
        return clock()

    monkeypatch.setattr(measuring.time, "perf_counter", read)
    monkeypatch.setattr(measuring, "_tell", events.append)
    measure(str(demo_program.folder), SHORT)
    said = [index for index, event in enumerate(events) if event != "clock"]
    assert [events[index] for index in said] == ["loaded", *["round"] * (1 + SHORT.rounds)]
    # Loading: begin, end, and the session's own within. A prompt: also where its logits are there. A step: begin, end.
    lengths = [after - before - 1 for before, after in zip([-1, *said], [*said, len(events)], strict=True)]
    assert lengths == [4, *[3 + 2 * SHORT.new_tokens] * (1 + SHORT.rounds), 0]


def test_lines_are_read_whole_and_by_nobody_elses_place(tmp_path: Path) -> None:
    """The reader has the writer's own file: where it reads is not where that writes."""
    heard: list[str] = []
    with (tmp_path / "printed").open("w+b", buffering=0) as file:
        file.write(f"a runtime's words\n{TOLD}loaded\n{TOLD}ro".encode())
        place = _hand_on(file.fileno(), 0, heard.append)
        assert heard == ["loaded"]
        file.write(b"und\nmore")
        assert _hand_on(file.fileno(), place, heard.append) == file.tell() - len("more")
    assert heard == ["loaded", "round"]


def test_still_bars_are_drawn_at_changes_alone() -> None:
    console = Console(force_terminal=True, width=80, file=StringIO())
    bars = Bars(console, still=True)
    # Others are drawn by a thread, ten times a second.
    assert (bars.bars.live.auto_refresh, Bars(console).bars.live.auto_refresh) == (False, True)
    drawn = console.file
    assert isinstance(drawn, StringIO)
    with bars.bars:
        advance = bars.task("rounds", 2)
        before = len(drawn.getvalue())
        advance(1)
        assert "50%" in drawn.getvalue()[before:]


def test_a_sweep_counts_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from glm_export.performance import sweep as room

    monkeypatch.setattr(room, "CACHE_BYTES", 1 << 20)
    monkeypatch.setattr(room, "FORMS", {"float32": None})
    told, config = Recorded(), api.open_checkpoint("demo").config
    found = room.sweep("demo", config, threads=1, rounds=2, progress=told)
    assert told.whole() == {"rounds of products": 3 * len(found.products)}
