"""A fixed share of ``make attack``; and that it notices what it is there for."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from glm_export.errors import InputError
from tests.attacks import guided, run
from tests.attacks.readers import Reader, readers
from tests.helpers.golden_data import GOLDEN

SHARE, SEED = 600, 7


def test_a_share_of_all_inputs_is_read_or_refused() -> None:
    command = [sys.executable, str(Path(run.__file__)), "--count", str(SHARE), "--seed", str(SEED), "--workers", "1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    worked, refused, violations = map(int, found.stdout.split("all ")[1].split()[:3])
    assert worked + refused == SHARE
    assert min(worked, refused) > SHARE // 10
    assert not violations


def outcome(call: Callable[[Path, Random], object], work: Path) -> run.Outcome:
    """Of a reader that does so."""
    (work / "bait").mkdir(exist_ok=True)
    (work / "bait" / "secret").write_text("")
    return run.attacked(Reader(sound=GOLDEN / "chat", files=[], call=call), "planted", 0, 1, work)


def refuse(folder: Path, chooser: Random) -> None:
    raise InputError("no")


def say_two_lines(folder: Path, chooser: Random) -> None:
    error = InputError("no")
    error.args = ("one\ntwo",)
    raise error


def compute(folder: Path, chooser: Random) -> None:
    while True:
        pass


PLANTED: dict[str, tuple[Callable[[Path, Random], object], str]] = {
    "another exception": (lambda folder, chooser: {}[1], "KeyError"),
    "two lines": (say_two_lines, "no short line"),
    "a segfault": (lambda folder, chooser: ctypes.string_at(1), "SIGSEGV"),
    "an exit": (lambda folder, chooser: os._exit(3), "exited with 3"),
    "memory": (lambda folder, chooser: bytearray(3 << 30), "MemoryError"),
    "a file beside": (lambda folder, chooser: (folder.parent / "bait" / "secret").read_text(), "opens"),
    "a program": (lambda folder, chooser: subprocess.run(["true"], check=True), "runs"),
    "no end": (compute, "SIGKILL"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_every_kind_of_violation_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, told = PLANTED[name]
    monkeypatch.setattr(run, "SECONDS", 1)
    found = outcome(call, tmp_path)
    assert found.kind == run.VIOLATION
    assert told in found.told


def test_reading_and_refusing_are_none(tmp_path: Path) -> None:
    assert outcome(lambda folder, chooser: (folder / "glm4.json").read_bytes(), tmp_path).kind == run.WORKED
    assert outcome(refuse, tmp_path) == run.Outcome(kind=run.REFUSED, told="no")


def test_what_is_guided_is_among_the_readers(tmp_path: Path) -> None:
    """atheris itself is run on purpose: it has no wheel for every machine."""
    every = readers(tmp_path)
    for name, file in guided.TARGETS.values():
        assert (every[name].sound / file).is_file()
