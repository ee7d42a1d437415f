"""The goals, and which of them the results that are there meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from parts import PARTS
from record import SHAPE, Facts, NotAvailableError, Recorder, read
from speeds import COMPILED, ONNXRUNTIME, OURS, speeds, times

LEAST_SHARE, WANTED_SHARE = 0.70, 0.85
LEAST_TIMES = 1.3
FORMS = ("float16", "int8-weights")
MET, REACHED, MISSED, OPEN = "met", "least met", "missed", "not measured"
ENGINE = "TensorRT"
"""Of either kind."""


@dataclass(frozen=True)
class Goal:
    """``found`` None: not measured. Where there is no ``wanted`` beyond it, ``least`` is all there is to meet."""

    name: str
    least: float
    found: float | None
    wanted: float | None = None
    most: bool = False

    @property
    def state(self) -> str:
        if self.found is None:
            return OPEN
        if self.most:
            return MET if self.found <= self.least else MISSED
        if self.found < self.least:
            return MISSED
        return MET if self.wanted is None or self.found >= self.wanted else REACHED


def verdict(recorder: Recorder) -> None:
    """Every goal as a step; those not measured are not available.

    Raises:
        NotAvailableError: there is no result to judge.
    """
    others = [part.name for part in PARTS if part.name != recorder.part]
    results = [found for name in others if (found := read(recorder.kit.out, name)) is not None]
    if not results:
        raise NotAvailableError(f"{recorder.kit.out} holds no results yet")
    for goal in goals(results, recorder.kit.shape):
        if recorder.kit.rehearse and not goal.most:
            # Of a CPU's speed no goal says anything.
            goal = replace(goal, found=None)
        recorder.step(goal.name, partial(judged, goal))


def judged(goal: Goal) -> Facts:
    if goal.found is None:
        raise NotAvailableError(OPEN)
    return asdict(goal) | {"state": goal.state, "passed": goal.state != MISSED}


def goals(results: Sequence[Facts], shape: str = SHAPE) -> list[Goal]:
    """Speeds are judged at batch 1 and full size."""
    single = {
        (kind(one), one["form"]): one
        for one in speeds(results)
        if one["side"] == OURS and one["batch"] == 1 and one["shape"] == shape
    }
    found = []
    for runtime in (ENGINE, ONNXRUNTIME):
        for form in FORMS:
            ours = single.get((runtime, form))
            share = ours.get("share_of_floor") if ours else None
            name = f"{runtime} {form}: share of the memory-bandwidth roofline, decoding"
            found.append(Goal(name, LEAST_SHARE, share, WANTED_SHARE))
    for form in FORMS:
        ours = single.get((ENGINE, form))
        ratio = times(results, COMPILED, ours) if ours else None
        found.append(Goal(f"{ENGINE} {form}: decoding speed over transformers compiled, float16", LEAST_TIMES, ratio))
    found += [
        Goal(f"{runtime} float16: seconds without CUDA graph over seconds with", 1.0, graph(results, runtime))
        for runtime in (ENGINE, ONNXRUNTIME)
    ]
    checks = [step for result in results for step in result["steps"] if "speed" not in step]
    broken = sum(step["passed"] is False for step in checks) + sum("error" in result for result in results)
    done = any(step["passed"] is not None for step in checks)
    return [*found, Goal("checks that differ or failed", 0, broken if done or broken else None, most=True)]


def kind(ours: Facts) -> str:
    return ONNXRUNTIME if ours["runtime"] == ONNXRUNTIME else ENGINE


def graph(results: Sequence[Facts], runtime: str) -> float | None:
    """How much longer decoding takes without a CUDA graph, of the full size in float16."""
    part = "full-ort-float16" if runtime == ONNXRUNTIME else "full-engine-float16"
    for result in results:
        for step in result["steps"]:
            if result["part"] == part and step.get("seconds_without_graph"):
                return float(step["seconds_without_graph"] / step["seconds_with_graph"])
    return None
