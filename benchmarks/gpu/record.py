"""What a part finds out: steps, kept as they are done, and one JSON file at the end that is whole or not there.

A part that was cut off goes on where it stopped: steps that passed, in the same code, are not done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE = ("glm_export", "graphs", "calibration", "benchmarks/gpu")
PACKAGES = (
    "glm-export", "torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings", "transformers", "polygraphy", "numpy",
    "onnx", "onnx-ir", "onnxscript", "safetensors",
)  # fmt: skip
SHAPE, TINY = "chatglm2-6b", "tiny"
Facts = dict[str, Any]


class NotAvailableError(Exception):
    """This machine has not what a step or a part needs; the message says what."""


@dataclass(frozen=True)
class Kit:
    """What every part is given.

    ``work`` holds checkpoints, programs and engines, ``out`` the results. ``shape``: of the full-size parts, a name of
    ``make_checkpoint.py``. ``runtime``: of the full-size engines; None takes the usual one. ``rehearse``: the code is
    run on a machine without a GPU, as far as it goes there.
    """

    work: Path
    out: Path
    shape: str = SHAPE
    runtime: str | None = None
    rehearse: bool = False

    @property
    def device(self) -> str:
        """What PyTorch calls it."""
        return "cpu" if self.rehearse else "cuda"


def identity(kit: Kit) -> str:
    """What a result belongs to: twelve digits that change with the code, and what was asked for beside the usual."""
    digest = hashlib.sha256()
    for path in sorted(path for room in CODE for path in (ROOT / room).rglob("*.py")):
        digest.update(path.read_bytes())
    unusual = (kit.shape if kit.shape != SHAPE else None, kit.runtime, "rehearsal" if kit.rehearse else None)
    return " ".join(filter(None, (digest.hexdigest()[:12], *unusual)))


def asked_alike(one: str, other: str) -> bool:
    """Whether two identities differ in the code at most."""
    return one.partition(" ")[2] == other.partition(" ")[2]


def versions() -> dict[str, str]:
    """Of what is installed among :data:`PACKAGES`."""
    installed = {one.metadata["Name"]: one.version for one in distributions()}
    named = {str(name).lower().replace("_", "-"): found for name, found in installed.items()}
    return {name: named[name] for name in PACKAGES if name in named}


def this_device() -> dict[str, str | None]:
    """The first GPU and its driver."""
    from glm_export.machine.facts import this_machine
    from glm_export.machine.gpu import driver_version, gpus

    first = next(iter(gpus()), None)
    return {
        "device": f"{first.name} (compute capability {first.compute_capability})" if first else "no GPU",
        # nvidia-smi's "name, driver" where it is there; the library knows the newest CUDA the driver serves.
        "driver": "; ".join(filter(None, ((this_machine(()).gpu or "").partition(", ")[2], driver_version()))) or None,
    }


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that are none as text, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def write_whole(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def one_line(error: BaseException | str) -> str:
    """An error's first words."""
    text = " ".join(str(error).split())[:400] or "it said nothing"
    return text if isinstance(error, str) else f"{type(error).__name__}: {text}"


@dataclass
class Recorder:
    """One part's run. ``facts`` are of the part as a whole.

    ``again``: nothing of an earlier run is used.
    """

    part: str
    kit: Kit
    code: str
    again: bool = False
    facts: Facts = field(default_factory=dict)
    steps: list[Facts] = field(default_factory=list)
    reason: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        self.kit.out.mkdir(parents=True, exist_ok=True)
        self.started = time.perf_counter()
        if self.again:
            shutil.rmtree(self.kit.work / self.part, ignore_errors=True)
            self._kept_path.unlink(missing_ok=True)
        self._earlier = {
            step["step"]: step for step in kept_steps(self.kit.out, self.part, self.code) if step["passed"]
        }

    @property
    def _kept_path(self) -> Path:
        return kept_path(self.kit.out, self.part)

    def folder(self, name: str | None = None) -> Path:
        """A folder for what this code makes, by default the part's own; emptied if other code filled it."""
        path = self.kit.work / (name or self.part)
        mark = path / ".code"
        if not mark.is_file() or mark.read_text() != self.code:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            mark.write_text(self.code)
        return path

    def step(self, name: str, work: Callable[[], Mapping[str, Any]]) -> Facts:
        """Do one thing and keep what it found, whatever happens; one that passed before is not done again.

        ``work`` returns facts; ``passed`` among them says whether they are as they should be, True if it is missing.
        """
        if name in self._earlier:
            return self._keep(self._earlier[name] | {"from_an_earlier_run": True})
        started = time.perf_counter()
        try:
            found: Facts = {"passed": True, **work()}
        except NotAvailableError as missing:
            found = {"passed": None, "reason": str(missing)}
        except Exception as error:  # one thing that fails must not hide what the others show
            found = self._failure(error)
        seconds = round(time.perf_counter() - started, 2)
        return self._keep({"step": name, "code": self.code, "seconds": seconds} | plain(found))

    def _failure(self, error: Exception) -> Facts:
        from glm_export.errors import EnvironmentMissingError

        if self.kit.rehearse and isinstance(error, EnvironmentMissingError):
            return {"passed": None, "reason": str(error)}
        traceback.print_exception(error)
        return {"passed": False, "error": one_line(error)}

    def _keep(self, step: Facts) -> Facts:
        self.steps.append(step)
        with self._kept_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step, ensure_ascii=False) + "\n")
        print(json.dumps(step, ensure_ascii=False), flush=True)
        return step

    def finish(self) -> Facts:
        """Write the part's file."""
        seconds = time.perf_counter() - self.started
        result = result_of(self.part, self.steps, self.kit, seconds, facts=self.facts, code=self.code)
        result |= {name: value for name in ("reason", "error") if (value := getattr(self, name)) is not None}
        if self.error is not None:
            result["passed"] = False
        save(self.kit.out, result)
        # What failed is tried again with what passed kept; only a part that is through has no more use for its steps.
        if result["passed"] is not False:
            self._kept_path.unlink(missing_ok=True)
        return result


def kept_path(out: Path, part: str) -> Path:
    """Where a part keeps its steps while it runs."""
    return out / f".{part}.steps.jsonl"


def kept_steps(out: Path, part: str, code: str) -> list[Facts]:
    """The steps that a part has done in this code, each as it went last; a line that was cut off is left out."""
    path = kept_path(out, part)
    found: dict[str, Facts] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if step["code"] == code:
            found[step["step"]] = step
    return list(found.values())


def verdict_of(steps: list[Facts]) -> bool | None:
    """False where one step differs or failed; None where none could be done."""
    passed = [step["passed"] for step in steps]
    return False if False in passed else (True if True in passed else None)


def result_of(part: str, steps: list[Facts], kit: Kit, seconds: float, *, facts: Mapping[str, Any], code: str) -> Facts:
    """A part's file as values."""
    return {
        "part": part, "passed": verdict_of(steps), "seconds": round(seconds, 1),
        "made": datetime.now(UTC).isoformat(timespec="seconds"), **this_device(), "rehearsal": kit.rehearse,
        "shape": kit.shape, "code": code, "versions": versions(), "facts": plain(facts), "steps": steps,
    }  # fmt: skip


def save(out: Path, result: Facts) -> None:
    """Write a part's file."""
    write_whole(out / f"{result['part']}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read(out: Path, part: str) -> Facts | None:
    """A part's file; None where there is none, or it is no result."""
    try:
        found = json.loads((out / f"{part}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("part") == part else None
