"""The embedded models on ONNX Runtime's CUDA provider; one line of JSON a program. Called by ``run.sh``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime

from glm_export import api
from glm_export.calibration import recipes
from glm_export.demo import fill_recall, poems, recall
from glm_export.generation import Stopping, generate_ids
from glm_export.sessions.ort import CUDA, OrtSession

# dialect, dtype, recipe
CAUSAL: list[tuple[str, str, str | None]] = [
    ("onnx", "float32", None), ("onnx", "float16", None), ("onnx", "bfloat16", None), ("ort", "float32", None),
    ("ort", "float16", None), ("ort", "float16", "int8-weights"), ("ort", "float16", "int4-weights"),
    ("tensorrt", "float16", None), ("onnx", "float16", "int8-weights"), ("onnx", "float16", "int4-weights"),
    ("onnx", "float32", "int8-smoothquant"), ("onnx", "float16", "int8-smoothquant"), ("ort", "float16", "int8-kv"),
]  # fmt: skip
PREFIX = [(dialect, dtype, recipe) for dialect, dtype, recipe in CAUSAL if recipe is None or dialect == "onnx"]
STEPS = 64
# Hidden states are kept in float16 between layers; kernels differ in the last bits.
CALIBRATION_TOLERANCE = 1e-3


def check(model: str, dialect: str, dtype: str, recipe: str | None, work: Path) -> dict[str, Any]:
    """Parity with PyTorch, and what the model writes."""
    needs_ranges = recipe is not None and recipes.load(recipe).needs != "nothing"
    ranges = work / f"{model}-ranges" if needs_ranges else None
    program = api.export(
        model, work / "program", dialect=dialect, dtype=dtype, recipe=recipe, ranges=ranges, force=True
    )
    with OrtSession(program) as session:
        if session.runtime.get_providers()[0] != CUDA:
            print(f"the CUDA provider was not loaded, found {session.runtime.get_providers()[0]}")
            sys.exit(3)
        written = (recall if model == "demo" else fill_recall)(session, poems())
    report = api.check(program, model)
    needed = max(output.needed for output in report.parity.outputs)
    facts = {"model": model, "dialect": dialect, "dtype": dtype, "recipe": recipe, "written": str(written)}
    return facts | {"needed": needed, "passed": report.passed}


def calibrated(model: str, work: Path) -> dict[str, Any]:
    """Thresholds measured on the GPU against those of the CPU, whose ranges the other checks use."""
    options: dict[str, Any] = {"corpus": "poems", "max_samples": 64}
    there = api.calibrate(model, work / f"{model}-ranges-cuda", device="cuda", **options)
    here = api.calibrate(model, work / f"{model}-ranges", **options)
    needed = max(abs(there.threshold(n, "min_max") / here.threshold(n, "min_max") - 1) for n in here.inputs)
    return {"calibrate": model, "needed": needed, "passed": needed <= CALIBRATION_TOLERANCE}


def captured(work: Path) -> dict[str, Any]:
    """The same tokens with decode steps captured as CUDA graphs, and seconds for each way."""
    program = api.export("demo", work / "program", dialect="ort", dtype="float16", force=True)
    ids: dict[bool, list[int]] = {}
    seconds: dict[bool, float] = {}
    for graph in (False, True):
        with OrtSession(program, cuda_graph=graph) as session:
            for _ in range(2):  # the first captures
                started = time.perf_counter()
                (row,) = generate_ids(session, [[5, 900, 31]], stopping=Stopping(max_new_tokens=STEPS))
                seconds[graph] = time.perf_counter() - started
            ids[graph] = row.ids
    facts = {"cuda_graph": True, "seconds": seconds[True], "seconds_without": seconds[False]}
    return facts | {"passed": ids[True] == ids[False]}


def main() -> None:
    onnxruntime.preload_dlls()
    print("onnxruntime", onnxruntime.__version__, onnxruntime.get_available_providers())
    work, failed = Path(sys.argv[1]), 0
    jobs = [lambda model=model: calibrated(model, work) for model in ("demo", "demo-glm")]
    jobs += [lambda one=one: check("demo", *one, work) for one in CAUSAL]
    jobs += [lambda one=one: check("demo-glm", *one, work) for one in PREFIX]
    for job in (*jobs, lambda: captured(work)):
        try:
            facts = job()
        except Exception as error:  # one program the provider cannot run must not hide what the others show
            facts = {"passed": False, "error": " ".join(str(error).split())[:300]}
        failed += not facts["passed"]
        print(json.dumps(facts), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
