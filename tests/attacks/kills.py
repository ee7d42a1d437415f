"""Kill verbs that write while they write: ``python tests/attacks/kills.py --count 100 --seed 1``.

Each trial starts a verb in a process of its own, kills it (SIGKILL) at a random moment or before an aimed step, looks
at what is there, and runs the verb again. Violations: an old folder that is gone or changed, a new one that is not
whole, anything left after the second run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from glm_export import api
from glm_export.artifacts import output_folder
from glm_export.artifacts.manifest import read_manifest, require_undamaged
from glm_export.artifacts.open import TOLD_BY, kind_of
from glm_export.errors import GlmExportError
from glm_export.model_folder import file_sha256
from tests.helpers.tiny import tiny_values, write_checkpoint
from tests.helpers.walked import random_corpus

Verb = Callable[[Path, bool], object]
AIMED: dict[str, tuple[Any, str]] = {
    "a folder is made": (Path, "mkdir"),
    "a file is renamed": (Path, "replace"),
    "a file is removed": (Path, "unlink"),
    "the new folder takes the name": (output_folder, "take_name"),
    "names are exchanged": (output_folder, "exchange"),
    "the old folder is removed": (output_folder, "_remove_replaced"),
    "a folder is removed": (shutil, "rmtree"),
}
"""What a run is killed before, and where that is looked up."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """``moment``: seconds, or a key of :data:`AIMED`. ``replacing``: an old folder is there, and ``--force`` given."""

    verb: str
    moment: float | str
    replacing: bool


def verbs(work: Path) -> dict[str, Verb]:
    """Each writes a small folder; ``build`` where TensorRT-RTX is installed."""
    folder = write_checkpoint(work / "checkpoint", tiny_values("chatglm2"))
    checkpoint = api.open_checkpoint(folder)
    corpus = random_corpus(checkpoint.config)
    found: dict[str, Verb] = {
        "export": lambda out, force: api.export(checkpoint, out, force=force),
        "calibrate": lambda out, force: api.calibrate(checkpoint, out, corpus=corpus, force=force),
    }
    from glm_export.engines import vendor

    if vendor.installed(vendor.TENSORRT_RTX) is not None:
        from glm_export.deployment.build import build

        found["build"] = lambda out, force: build(
            checkpoint, out, runtime=vendor.TENSORRT_RTX, max_context=64, force=force
        )
    return found


def started(verb: Verb, out: Path, *, force: bool, before: str | None = None) -> int:
    """The verb in a process of its own, which is killed before a step."""
    child = os.fork()
    if child:
        return child
    try:
        with Path(os.devnull).open("w") as quiet:
            os.dup2(quiet.fileno(), 1)
            os.dup2(quiet.fileno(), 2)
        if before is not None:
            place, name = AIMED[before]
            setattr(place, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        verb(out, force)
        os._exit(0)
    except BaseException:
        os._exit(1)


def contents(folder: Path) -> dict[str, str]:
    """sha256 by name."""
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def damage(folder: Path) -> str:
    """Why a folder is not one that a verb finished; nothing where it is."""
    kind = kind_of(folder)
    if kind is None:
        return f"{folder.name} is of no kind: {sorted(path.name for path in folder.iterdir())}"
    path = folder / TOLD_BY[kind]
    try:
        require_undamaged(path, read_manifest(path, "export"), "export")
    except GlmExportError as error:
        return str(error)
    return ""


def violation(trial: Trial, verb: Verb, home: Path) -> str:
    """What one trial found amiss; nothing where all held."""
    out, old = home / "out", {}
    if trial.replacing:
        verb(out, False)
        old = contents(out)
    aimed = trial.moment if isinstance(trial.moment, str) else None
    child = started(verb, out, force=trial.replacing, before=aimed)
    if not isinstance(trial.moment, str):
        time.sleep(trial.moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if trial.replacing and not out.is_dir():
        return f"the old folder is gone: {sorted(os.listdir(home))}"
    if out.exists() and contents(out) != old and (found := damage(out)):
        return f"not whole: {found}"
    try:
        verb(out, out.exists())
    except GlmExportError as error:
        return f"the second run was refused: {error}"
    left = sorted(set(os.listdir(home)) - {"out"})
    return damage(out) or (f"left: {left}" if left else "")


def trials(seconds: dict[str, float], count: int, chance: Random) -> list[Trial]:
    """Aimed at every step of every verb first, then at random moments."""
    aimed = [
        Trial(verb=verb, moment=step, replacing=old) for step in AIMED for verb in seconds for old in (True, False)
    ]
    chance.shuffle(aimed)
    chosen = aimed[: count // 2]
    while len(chosen) < count:
        verb = chance.choice(list(seconds))
        moment = chance.uniform(0, seconds[verb])
        chosen.append(Trial(verb=verb, moment=moment, replacing=chance.random() < 0.5))
    return chosen


def main(count: int, seed: int, only: list[str]) -> int:
    """Run trials; prints counts and violations, and returns how many there were."""
    torch.set_num_threads(1)
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="glm-export-kills-") as name:
        work, seconds, every = Path(name), {}, {}
        for verb, call in verbs(work).items():
            if only and verb not in only:
                continue
            begun = time.monotonic()
            assert os.waitstatus_to_exitcode(os.waitpid(started(call, work / verb, force=False), 0)[1]) == 0, verb
            seconds[verb], every[verb] = time.monotonic() - begun, call
        for number, trial in enumerate(trials(seconds, count, Random(seed))):
            home = work / str(number)
            home.mkdir()
            said = violation(trial, every[trial.verb], home)
            found[trial.verb, "violation" if said else "held"] += 1
            if said:
                print(f"{trial}: {said}", flush=True)
            shutil.rmtree(home)
    for (verb, kind), number in sorted(found.items()):
        print(f"{verb:10} {kind:10} {number}")
    violations = sum(number for (_, kind), number in found.items() if kind == "violation")
    print(f"{found.total()} kills, {violations} violations")
    return violations


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="a verb; several may be given")
    given = parser.parse_args()
    sys.exit(1 if main(given.count, given.seed, given.only) else 0)
