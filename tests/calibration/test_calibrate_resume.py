"""Calibration that was killed: started again it goes on, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_export import api
from glm_export.artifacts import folder_lock
from glm_export.artifacts.manifest import RANGES_MANIFEST
from glm_export.calibration import recipes
from glm_export.calibration.layerwise import calibrate as walk
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.ranges import RANGES
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import CheckpointError, InputError
from tests.helpers.walked import GPTQ, contents, one_thread, poems, random_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_thread():
        yield


# -- killed and started again --------------------------------------------------------------------------


def kill_and_resume(root: str, recipe: str, trials: str) -> None:
    """In a process of its own: kill each trial three times at random moments, then let it finish. Prints a report."""
    torch.set_num_threads(1)
    checkpoint = api.open_checkpoint("demo")
    corpus, rounding = poems(checkpoint), recipes.load(recipe) if recipe else None

    def started(out: Path) -> int:
        child = os.fork()  # killed like any other process, without importing torch again
        if child:
            return child
        try:
            calibrate(checkpoint, corpus, out, recipe=rounding)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def finished(out: Path) -> dict[str, str]:
        assert os.waitpid(started(out), 0)[1] == 0
        return contents(out)

    begun_at = time.monotonic()
    whole, ends, left = finished(Path(root) / "whole"), [], []
    # Less than a layer takes, so that no run ends before it is killed, unless in the head.
    longest = (time.monotonic() - begun_at) / (2 * checkpoint.config.num_layers)
    for trial in range(int(trials)):
        chance, out = random.Random(trial), Path(root) / f"trial-{trial}"
        work = out.with_name(f".{out.name}.work")
        for begun in sorted(chance.sample(range(checkpoint.config.num_layers + 1), 3)):
            if out.exists():
                break  # the one before came too late
            child, ended = started(out), False
            while not ended and not reached(work, begun):
                time.sleep(0.001)
                ended = os.waitpid(child, os.WNOHANG)[0] == child
            if not ended:
                time.sleep(chance.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            left.append(sorted(path.name for path in work.iterdir()) if work.exists() else [])
        # On a busy machine the last one may have come too late as well: then the run is whole already.
        ends.append(contents(out) if out.exists() else finished(out))
    print(json.dumps({"whole": whole, "ends": ends, "left": left, "beside": sorted(os.listdir(root))}))


def reached(work: Path, layer: int) -> bool:
    """Whether a run has begun to write what this layer reads, or later things."""
    try:
        names = os.listdir(work)
    except FileNotFoundError:  # not made yet, or named anew
        return False
    return any(name.startswith(("spool-", "layer-")) and int(name.split("-")[1][:3]) >= layer for name in names)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(("recipe", "trials"), [("", 3), (GPTQ, 1)])
def test_killed_runs_end_in_the_same_bytes(recipe: str, trials: int, tmp_path: Path) -> None:
    module = "tests.calibration.test_calibrate_resume"
    code = f"import sys; from {module} import kill_and_resume; kill_and_resume(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), recipe, str(trials)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {RANGES, RANGES_MANIFEST} <= set(report["whole"])
    assert ("rounded-003.safetensors" in report["whole"]) == bool(recipe)
    assert report["ends"] == [report["whole"]] * trials
    assert report["beside"] == sorted(["whole", *(f"trial-{trial}" for trial in range(trials))])
    midway = [names for names in report["left"] if "state.json" in names and len(names) > 1]
    assert len(midway) >= 2 * trials  # of three kills a trial, the last of which may come too late
    assert len({tuple(names) for names in midway}) > 1


# -- started again in this process ---------------------------------------------------------------------


@pytest.fixture
def copied(chatglm2_copy: Path) -> Callable[[], Checkpoint]:
    """Opens a golden checkpoint that a test may change."""
    return lambda: api.open_checkpoint(chatglm2_copy)


def stopped_in(layer: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> list[int]:
    """Interrupt a run when it comes to a layer; the layers it went through."""
    through = walk._through_layer
    seen: list[int] = []

    def stopping(state: Any, decoder: Any, index: int, advance: Any) -> Any:
        seen.append(index)
        if index == layer:
            raise KeyboardInterrupt
        return through(state, decoder, index, advance)

    with monkeypatch.context() as patch:
        patch.setattr(walk, "_through_layer", stopping)
        try:
            run()
        except KeyboardInterrupt:
            assert seen[-1] == layer
    return seen


CHANGES = ["nothing", "corpus", "ids", "recipe", "weights", "config"]


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_same_run_goes_on(
    change: str, copied: Callable[[], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed between is measured from the start; ``ids``: other text that says the same of itself."""
    checkpoint, out = copied(), tmp_path / "ranges"
    corpus, recipe = random_corpus(checkpoint.config), None
    assert stopped_in(1, monkeypatch, lambda: calibrate(checkpoint, corpus, out)) == [0, 1]
    assert (tmp_path / ".ranges.work").is_dir()
    if change == "corpus":
        corpus = replace(corpus, sha256="1")
    if change == "ids":
        corpus = random_corpus(checkpoint.config, seed=1)
    if change == "recipe":
        recipe = recipes.load(GPTQ)
    if change == "weights":
        path = checkpoint.files[-1]
        path.write_bytes(path.read_bytes() + b"\0")
    if change == "config":
        path = checkpoint.folder / "config.json"
        path.write_text(path.read_text() + "\n")
    checkpoint = copied()
    walked = stopped_in(-1, monkeypatch, lambda: calibrate(checkpoint, corpus, out, recipe=recipe))
    assert walked == ([1] if change == "nothing" else [0, 1])
    calibrate(checkpoint, corpus, tmp_path / "anew", recipe=recipe)
    assert contents(out) == contents(tmp_path / "anew")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anew", "checkpoint", "ranges"]


@pytest.mark.parametrize(
    ("name", "bytes_of"),
    [
        ("state.json", lambda data: data[:-5]),
        ("state.json", lambda _: b"[" * 100_000),
        ("layer-000.safetensors", lambda data: data[:-1]),
        ("spool-001", lambda data: data[:-1]),
        ("spool-001", lambda _: b""),
    ],
)
def test_what_is_damaged_is_begun_anew(
    name: str,
    bytes_of: Callable[[bytes], bytes],
    copied: Callable[[], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a machine that lost its power may leave it."""
    checkpoint = copied()
    corpus, out = random_corpus(checkpoint.config), tmp_path / "ranges"
    stopped_in(1, monkeypatch, lambda: calibrate(checkpoint, corpus, out))
    file = tmp_path / ".ranges.work" / name
    file.write_bytes(bytes_of(file.read_bytes()))
    assert stopped_in(-1, monkeypatch, lambda: calibrate(checkpoint, corpus, out)) == [0, 1]
    calibrate(checkpoint, corpus, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_second_run_on_one_folder_is_refused(copied: Callable[[], Checkpoint], tmp_path: Path) -> None:
    """Two corpora would mix."""
    checkpoint, out = copied(), tmp_path / "ranges"
    with ThreadPoolExecutor(1) as pool, folder_lock.alone(out):
        second = pool.submit(calibrate, checkpoint, random_corpus(checkpoint.config), out)
        with pytest.raises(InputError, match="another run is writing"):
            second.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_what_no_calibration_wrote_stays(copied: Callable[[], Checkpoint], tmp_path: Path) -> None:
    checkpoint, work = copied(), tmp_path / ".ranges.work"
    work.mkdir()
    (work / "letters").touch()
    with pytest.raises(InputError, match="holds letters, which no calibration wrote"):
        calibrate(checkpoint, random_corpus(checkpoint.config), tmp_path / "ranges")
    assert (work / "letters").exists()


def test_a_checkpoint_that_changes_meanwhile_is_noticed(
    copied: Callable[[], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copied()
    through = walk._through_head

    def changing(*arguments: Any) -> Any:
        os.utime(checkpoint.files[0], ns=(0, 0))
        return through(*arguments)

    monkeypatch.setattr(walk, "_through_head", changing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        calibrate(checkpoint, random_corpus(checkpoint.config), tmp_path / "ranges")
    assert not (tmp_path / "ranges").exists()


def test_a_run_goes_on_from_what_is_on_disk(
    copied: Callable[[], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of every comparison of bytes here: a spool that was changed between changes them."""
    checkpoint = copied()
    corpus, out = random_corpus(checkpoint.config), tmp_path / "ranges"
    calibrate(checkpoint, corpus, tmp_path / "whole")
    stopped_in(1, monkeypatch, lambda: calibrate(checkpoint, corpus, out))
    spool = tmp_path / ".ranges.work" / "spool-001"
    spool.write_bytes(spool.read_bytes()[:-2] + b"\0\0")
    calibrate(checkpoint, corpus, out)
    assert contents(out) != contents(tmp_path / "whole")


def test_a_run_killed_while_it_tidies_up_goes_on(
    copied: Callable[[], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every removal or renaming of a file."""
    checkpoint = copied()
    corpus, steps = random_corpus(checkpoint.config, lengths=(9, 5)), iter(())
    listed = Path.glob
    # As file systems may: the last first, so that what a layer reads goes before what says that it was read.
    monkeypatch.setattr(Path, "glob", lambda path, pattern: sorted(listed(path, pattern), reverse=True))

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) == 0:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return changed

    for name in ("unlink", "rename", "replace"):
        monkeypatch.setattr(Path, name, counting(getattr(Path, name)))
    whole = contents(calibrate(checkpoint, corpus, tmp_path / "whole").folder)
    interrupted = 0
    for last in range(100):
        out, steps = tmp_path / f"out-{last}", iter(range(last, -1, -1))
        try:
            calibrate(checkpoint, corpus, out)
            break
        except KeyboardInterrupt:
            interrupted += 1
        if not out.exists():  # the last step of all removes the lock
            calibrate(checkpoint, corpus, out)
        assert contents(out) == whole
    assert interrupted > 12
