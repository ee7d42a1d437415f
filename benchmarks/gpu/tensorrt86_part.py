"""TensorRT 8.6, which has a Python of its own without PyTorch or this package: cases are written here and run there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from at_work import greedy, known_prompts
from numpy.typing import NDArray
from onnxruntime_parts import CORPUS, measured_ranges
from record import Facts, NotAvailableError, Recorder

from glm_export import api
from glm_export.artifacts.engine import profile_json
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.embedded import DEMO
from glm_export.engines.implicit_int8 import calibration_feeds, packed_rows
from glm_export.engines.profiles import profiles_of, resolve_limits
from glm_export.exporter.options import ExportOptions
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.proof.cases import parity_cases
from glm_export.proof.compare import TOLERANCES
from glm_export.proof.runners import canonical_signature
from glm_export.sessions.torch import TorchSession
from glm_export.spec.signature import BATCH, LOGITS, PAST

PYTHON = "trt86-python"
SCRIPT = Path(__file__).with_name("tensorrt86.py")
ROWS, TOKENS = 4, 64
"""Of the profiles: rows of a batch, and tokens read at once, which are also those of a row of calibration."""
CALIBRATION_ROWS, TEXT_ROWS = 32, 8
KL_BOUND = 0.1
"""Nats a token, as in the part ``implicit-int8``."""
# precision there, dtype of the program
BUILDS = (
    ("fp32", "float32"), ("fp16", "float16"), ("int8-cache", "float32"), ("int8-entropy", "float32"),
    ("int8-min-max", "float32"),
)  # fmt: skip
Arrays = dict[str, NDArray[Any]]


def tensorrt86(recorder: Recorder) -> None:
    """Every precision, each in a process of that Python.

    Raises:
        NotAvailableError: it is not on PATH.
    """
    python = shutil.which(PYTHON)
    if python is None:
        raise NotAvailableError(f"{PYTHON} is not on PATH")

    def built(precision: str, dtype: str) -> Facts:
        return judged(precision, dtype, elsewhere(recorder, python, precision, dtype))

    for precision, dtype in BUILDS:
        recorder.step(precision, partial(built, precision, dtype))


def elsewhere(recorder: Recorder, python: str, precision: str, dtype: str) -> Facts:
    """What the script prints last."""
    program, cases = prepared(recorder, dtype)
    command = [python, str(SCRIPT), str(program), str(cases), "--precision", precision]
    # That interpreter has packages of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stderr[-4000:], flush=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 3:
        raise NotAvailableError(lines[-1] if lines else "TensorRT 8.6 found no GPU")
    if done.returncode or not lines:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
    found: Facts = json.loads(lines[-1])
    return found


def judged(precision: str, dtype: str, found: Facts) -> Facts:
    """Floats within the dtype's tolerance of PyTorch, in float32 the tokens equal; INT8 by what it costs on text."""
    if precision.startswith("int8"):
        return found | {"passed": bool(found["finite"]) and found["kl"] <= KL_BOUND}
    tolerance = TOLERANCES[dtype]
    alike = dtype != "float32" or found["greedy_equal"] == found["greedy_total"]
    return found | {"tolerance": tolerance, "passed": bool(found["finite"]) and found["needed"] <= tolerance and alike}


def prepared(recorder: Recorder, dtype: str) -> tuple[Path, Path]:
    """The program with our calibration cache, and its cases."""
    folder = recorder.folder()
    program, cases = folder / dtype, folder / f"{dtype}.npz"
    if not program.is_dir():
        ranges = measured_ranges(DEMO, folder)
        api.export(DEMO, program, ExportOptions(dialect="portable", dtype=dtype, logits="all", ranges=ranges))
    if not cases.is_file():
        named: dict[str, Any] = dict(arrays(load_program(program)))
        np.savez(cases, **named)
    return program, cases


def arrays(program: OnnxProgram) -> Arrays:
    """Everything the other Python needs, by name: ``kind|number|in or out|tensor``, and the profiles as JSON."""
    limits = resolve_limits(program.signature, program.config.max_positions, max_batch=ROWS, prefill_tokens=TOKENS)
    profiles = [profile_json(profile) for profile in profiles_of(program.signature, limits)]
    found: Arrays = {"profiles": np.array(json.dumps(profiles))}
    with TorchSession(api.open_checkpoint(DEMO)) as reference:
        corpus = api.open_corpus(CORPUS, api.open_checkpoint(DEMO))
        rows = packed_rows([sample.prompt.ids for sample in corpus.samples], TOKENS)
        cases = parity_cases(
            reference, program.config, canonical_signature(program), program.signature.cache, limits.max_context,
            rows=ROWS, tokens=TOKENS,
        )  # fmt: skip
        for case in cases:
            outputs = reference.run(case.tensors)
            found |= {f"parity|{case.name}|in|{name}": array for name, array in case.tensors.items()}
            found |= {f"parity|{case.name}|out|{name}": array for name, array in outputs.items()}
        # Text that calibration has not read.
        for index, row in enumerate(rows[CALIBRATION_ROWS : CALIBRATION_ROWS + TEXT_ROWS]):
            feeds = prompt_feeds(program, row)
            found |= {f"text|{index}|in|{name}": array for name, array in feeds.items()}
            found[f"text|{index}|out|{LOGITS}"] = reference.prefill(prefill_feeds([Prompt(ids=row)], program.config))
        for index, prompt in enumerate(known_prompts(reference, DEMO)):
            found |= {f"greedy|{index}|in|{name}": array for name, array in prompt_feeds(program, prompt).items()}
            found[f"greedy|{index}|out|ids"] = np.array(greedy(reference, [prompt])[0], np.int64)
    integers = {spec.name: np.dtype(np.int32) for spec in program.signature.inputs}
    for index, feeds in enumerate(calibration_feeds(program, rows[:CALIBRATION_ROWS], integers)):
        found |= {f"calibrate|{index}|in|{name}": array for name, array in feeds.items()}
    return found


def prompt_feeds(program: OnnxProgram, ids: Any) -> Arrays:
    """A prompt read from nothing."""
    feeds: Arrays = dict(prefill_feeds([Prompt(ids=tuple(ids))], program.config).named())
    for spec in program.signature.inputs:
        if spec.is_cache:
            feeds[spec.name] = np.zeros(spec.shape(**{BATCH: 1, PAST: 0}), np.dtype(spec.dtype))
    return feeds
