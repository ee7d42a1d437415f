"""Measure a model in a process of its own, and memory's bandwidth before and after.

The model runs apart (``python -m glm_export.performance.measure``), so that memory is the model's alone. It
tells how far it is between what it times, in a file that is read here whenever its memory is looked at.

A decode step cannot be faster than reading every weight it uses and the cache once: that time is the floor here. Only
weights small enough to stay in the processor's cache from step to step go below it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

from glm_export import errors
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.machine.facts import this_machine
from glm_export.machine.memory import resident_bytes
from glm_export.performance.measure import LOADED, TOLD, open_model
from glm_export.performance.report import BenchKeywords, BenchOptions, BenchReport
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.spec.config import GlmConfig
from glm_export.spec.option import merged, takes

logger = logging.getLogger(__name__)
PACKAGES = ("glm-export", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")
SAMPLED_EVERY_S = 0.02
PRINTED_BYTES = 1 << 16


@takes(BenchOptions)
def bench(
    model: str | Path,
    options: BenchOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[BenchKeywords],
) -> BenchReport:
    """Measure a model.

    Args:
        model: an engine (TensorRT), an exported folder (ONNX Runtime) or a checkpoint (PyTorch, float32).
        options: what to measure; None is the defaults.
        progress: shows how far it is; should do nothing between two calls (``shown(still=True)``), which is measured.
        **keywords: options, in place of those.

    Raises:
        GlmExportError: the model cannot be opened or run here, or its context is too short for the options.
    """
    options = merged(BenchOptions, options, keywords)
    require_within_context(open_model(model).config, options)
    from glm_export.sessions.onnxruntime.runtime import usable_threads

    options = replace(options, threads=options.threads or usable_threads())
    progress = progress or NullProgress()
    before = _bandwidth("cpu", options, progress.task("memory's bandwidth", 1))
    told = _Told(progress, options.rounds)
    facts, peak = _measured_apart(["measure", str(model), json.dumps(asdict(options))], told)
    after = _bandwidth(facts["device"], options, progress.task("memory's bandwidth, again", 1))
    # A floor is what the memory can do at its best; the first pass read the processor's.
    passes = [one for one in (before if facts["device"] == "cpu" else None, after) if one is not None]
    return BenchReport(
        model=str(model), options=options, machine=this_machine(PACKAGES),
        bandwidth_bytes_s=max(passes, default=None), peak_anonymous_bytes=peak and peak[0],
        peak_file_bytes=peak and peak[1], **facts,
    )  # fmt: skip


class _Told:
    """What the measuring process tells, as stages: the model loaded, then a warm-up and rounds."""

    def __init__(self, progress: Progress, rounds: int) -> None:
        self._progress, self._rounds = progress, rounds
        self._advance = progress.task("model loaded", 1)

    def __call__(self, what: str) -> None:
        self._advance(1)
        if what == LOADED:
            self._advance = self._progress.task("rounds", 1 + self._rounds)


def _bandwidth(device: str, options: BenchOptions, advance: Advance) -> float | None:
    answer, _ = _measured_apart(["bandwidth", device, str(options.threads)])
    advance(1)
    return None if answer["bandwidth"] is None else float(answer["bandwidth"])


def require_within_context(config: GlmConfig, options: BenchOptions) -> None:
    """Check that what is to be read and written fits the model.

    Raises:
        InputError: it does not.
    """
    for name, tokens in (
        ("prompt tokens", options.prompt_tokens),
        ("context and new tokens", options.context + options.new_tokens),
    ):
        if tokens > config.text_positions:
            raise InputError(
                f"{tokens} {name} are wanted, the model's context is {config.text_positions}; ask for fewer"
            )


def _measured_apart(
    arguments: list[str], told: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Run one of this module's commands in a process of its own; its answer and its peak memory.

    Args:
        arguments: the command's.
        told: is called with what it tells meanwhile.
    """
    # -P: a folder of a model's is no place to import from, though people stand in it.
    command = [sys.executable, "-P", "-m", "glm_export.performance.measure", *arguments]
    logger.info("measured apart: %s", shlex.join(command))
    found = filter(None, (str(Path(errors.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(found)}
    # Files, because a pipe that nobody reads meanwhile holds only so much.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=printed, stderr=complaints, env=environment)
        try:
            peak = _watch(process, printed.fileno(), told)
        finally:
            process.kill()
        code = process.wait()
        printed.seek(0)
        complaints.seek(0)
        lines, said = (file.read().strip().splitlines() for file in (printed, complaints))
    if code or not lines:
        why = f"signal {-code}, which may mean too little memory" if code < 0 else f"exit code {code}"
        raise EnvironmentMissingError(
            f"the measuring process ended with {why}: {said[-1] if said else 'it said nothing'}"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer, peak


def _watch(process: subprocess.Popen[bytes], printed: int, told: Callable[[str], None]) -> tuple[int, int] | None:
    """Wait for a process to end, hand on what it tells meanwhile, and say the most memory it held."""
    peak: tuple[int, int] | None = None
    place = 0
    while process.poll() is None:
        place = _hand_on(printed, place, told)
        now = resident_bytes(process.pid)
        if now is not None:
            peak = now if peak is None else (max(peak[0], now[0]), max(peak[1], now[1]))
        time.sleep(SAMPLED_EVERY_S)
    _hand_on(printed, place, told)
    return peak


def _hand_on(printed: int, place: int, told: Callable[[str], None]) -> int:
    """Read whole lines of a file from a place on, which its writer does not notice; where the next begins."""
    lines = b""
    while block := os.pread(printed, PRINTED_BYTES, place + len(lines)):
        lines += block
    lines = lines[: lines.rfind(b"\n") + 1]
    for line in lines.decode("utf-8", "replace").splitlines():
        if line.startswith(TOLD):
            told(line.removeprefix(TOLD))
    return place + len(lines)
