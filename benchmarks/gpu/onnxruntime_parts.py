"""ONNX Runtime's CUDA provider: both embedded models in every dialect, dtype and recipe that runs there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from at_work import checked, graph_facts, in_turn, recalled, timed_decode
from record import Facts, Kit, NotAvailableError, Recorder

from glm_export import api
from glm_export.artifacts.program import load_program
from glm_export.calibration import recipes
from glm_export.calibration.options import CalibrationOptions
from glm_export.exporter.options import ExportOptions
from glm_export.sessions.onnxruntime.runtime import CUDA
from glm_export.sessions.onnxruntime.session import OrtSession

# dialect, dtype, recipe
CAUSAL: list[tuple[str, str, str | None]] = [
    ("onnx", "float32", None), ("onnx", "float16", None), ("onnx", "bfloat16", None), ("ort", "float32", None),
    ("ort", "float16", None), ("tensorrt", "float16", None), ("ort", "float16", "int8-weights"),
    ("ort", "float16", "int4-weights"), ("onnx", "float16", "int8-weights"), ("onnx", "float16", "int4-weights"),
    ("onnx", "float32", "int8-smoothquant"), ("onnx", "float16", "int8-smoothquant"), ("ort", "float16", "int8-kv"),
]  # fmt: skip
PREFIX = [(dialect, dtype, recipe) for dialect, dtype, recipe in CAUSAL if recipe is None or dialect == "onnx"]
CASES = {"demo": CAUSAL, "demo-glm": PREFIX}
CORPUS, SAMPLES = "poems", 64
# Hidden states are kept in float16 between layers; kernels differ in the last bits.
CALIBRATION_TOLERANCE = 1e-3


def embedded(recorder: Recorder, model: str, quantized: bool | None) -> None:
    """Parity with PyTorch and what the model writes, for each case; ``quantized`` None takes all."""
    for dialect, dtype, recipe in CASES[model]:
        if quantized is None or quantized == (recipe is not None):
            name = f"{model} {dialect} {dtype}{f' {recipe}' if recipe else ''}"
            recorder.step(name, partial(check, recorder, model, dialect, dtype, recipe))


def check(recorder: Recorder, model: str, dialect: str, dtype: str, recipe: str | None) -> Facts:
    """One program."""
    folder = recorder.folder()
    needs_ranges = recipe is not None and recipes.load(recipe).needs != "nothing"
    ranges = measured_ranges(model, folder) if needs_ranges else None
    program = api.export(
        model, folder / "program", ExportOptions(dialect=dialect, dtype=dtype, recipe=recipe, ranges=ranges), force=True
    )
    with OrtSession(program) as session:
        require_cuda(session.runtime, recorder.kit)
        written = recalled(session, model)
    return checked(program.folder, model) | {"written": str(written)}


def measured_ranges(model: str, folder: Path, device: str = "cpu") -> Path:
    """Ranges of an embedded model, measured once in a folder."""
    ranges = folder / f"ranges-{model}-{device}"
    if not ranges.is_dir():
        api.calibrate(model, ranges, CalibrationOptions(corpus=CORPUS, max_samples=SAMPLES, device=device))
    return ranges


def require_listed(kit: Kit) -> None:
    """See that this build of ONNX Runtime has a CUDA provider; whether it loads is seen on a program.

    Raises:
        NotAvailableError: it has none.
    """
    available = onnxruntime.get_available_providers()
    if not kit.rehearse and CUDA not in available:
        raise NotAvailableError(
            f"ONNX Runtime {onnxruntime.__version__} has only {', '.join(available)}; onnxruntime-gpu 1.31 is needed"
        )


def require_cuda(runtime: Any, kit: Kit) -> None:
    """See that a program runs on the GPU; ONNX Runtime falls back to the CPU where it cannot load the provider.

    Raises:
        NotAvailableError: it does not.
    """
    found = runtime.get_providers()[0]
    if not kit.rehearse and found != CUDA:
        raise NotAvailableError(f"the CUDA provider was not loaded, found {found}: CUDA 13 and cuDNN 9 are needed")


def calibrate(recorder: Recorder) -> None:
    """Thresholds measured on the GPU against those of the CPU."""
    for model in CASES:
        recorder.step(model, partial(calibrated, recorder, model))


def calibrated(recorder: Recorder, model: str) -> Facts:
    import torch

    if not recorder.kit.rehearse and not torch.cuda.is_available():
        raise NotAvailableError(f"PyTorch {torch.__version__} cannot reach the GPU")
    folder = recorder.folder()
    here, there = (
        api.open_ranges(measured_ranges(model, folder, device)) for device in ("cpu", recorder.kit.device)
    )  # fmt: skip
    assert here is not None
    assert there is not None
    needed = max(abs(there.threshold(n, "min_max") / here.threshold(n, "min_max") - 1) for n in here.inputs)
    return {"needed": needed, "tolerance": CALIBRATION_TOLERANCE, "passed": needed <= CALIBRATION_TOLERANCE}


def graphs(recorder: Recorder) -> None:
    """The same tokens with decode steps captured as CUDA graphs."""
    for dtype, recipe in (("float16", None), ("float16", "int8-weights")):
        name = f"demo ort {dtype} {recipe or ''}".strip()
        recorder.step(name, partial(captured, recorder, dtype, recipe))
        recorder.step(f"{name}, two prompts in turn", partial(captured_in_turn, recorder, dtype, recipe))


def captured_in_turn(recorder: Recorder, dtype: str, recipe: str | None) -> Facts:
    if recorder.kit.rehearse:
        raise NotAvailableError("a CUDA graph needs a GPU")
    program = api.export(
        "demo", recorder.folder() / "program", ExportOptions(dialect="ort", dtype=dtype, recipe=recipe), force=True
    )
    return in_turn(lambda graph: OrtSession(program, cuda_graph=graph), "demo")


def captured(recorder: Recorder, dtype: str, recipe: str | None) -> Facts:
    program = api.export(
        "demo", recorder.folder() / "program", ExportOptions(dialect="ort", dtype=dtype, recipe=recipe), force=True
    )
    return with_and_without(program.folder, recorder.kit)


def with_and_without(program: Path, kit: Kit) -> Facts:
    """Decode steps of a program of dialect ``ort``, captured and not."""
    if kit.rehearse:
        raise NotAvailableError("a CUDA graph needs a GPU")
    loaded = load_program(program)
    seconds: dict[bool, float] = {}
    ids: dict[bool, list[list[int]]] = {}
    for graph in (False, True):
        with OrtSession(loaded, cuda_graph=graph) as session:
            require_cuda(session.runtime, kit)
            seconds[graph], ids[graph] = timed_decode(session)
    return graph_facts(seconds, ids)
