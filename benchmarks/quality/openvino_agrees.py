"""Whether OpenVINO reads a program as ONNX Runtime does: the cases of ``check``, output by output.

    python benchmarks/quality/openvino_agrees.py demo demo-glm --recipe int8-token --work DIR

Exports each model in dialect `onnx`, and runs every case of ``check`` in ONNX Runtime and in OpenVINO (float32 asked
for), the latter in the environment that `benchmarks/peers/openvino_genai.py install --work DIR` makes. Of each output's
largest difference over its largest value it prints the median and the largest, over cases and outputs, and the least of
a control whose tokens are others. Ends with 1 where the median is above --bound, or the control is not above 1e-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CONTROL = 1e-2


def recorded(source: str, recipe: str | None, folder: Path) -> Path:
    """Export, run every case in ONNX Runtime, keep inputs and outputs; returns the program's folder."""
    from glm_export import api
    from glm_export.exporter.options import ExportOptions
    from glm_export.proof.cases import parity_cases
    from glm_export.proof.runners import canonical_signature
    from glm_export.sessions.onnxruntime.session import OrtSession

    program = api.export(source, folder / source, ExportOptions(dialect="onnx", recipe=recipe))
    signature = canonical_signature(program)
    with (
        api.load_session(source) as reference,
        OrtSession(program, ["CPUExecutionProvider"]) as session,
    ):
        for number, case in enumerate(parity_cases(reference, program.config, signature)):
            outputs = session.run(case.tensors)
            kept: dict[str, Any] = {f"in.{name}": value for name, value in case.tensors.items()}
            kept |= {f"out.{name}": value for name, value in outputs.items()}
            np.savez(folder / source / f"case-{number}.npz", **kept)
    return folder / source


def compared(folder: Path) -> dict[str, list[float]]:
    """In OpenVINO's environment: differences of all outputs of all cases, and of the control's logits."""
    import openvino

    model = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in model.outputs]
    found: dict[str, list[float]] = {"own": [], "control": []}
    for path in sorted(folder.glob("case-*.npz")):
        with np.load(path) as kept:
            inputs: dict[str, Any] = {name[3:]: kept[name] for name in kept if name.startswith("in.")}
            outputs = {name[4:]: kept[name] for name in kept if name.startswith("out.")}
        for kind in found:
            if kind == "control":
                inputs["input_ids"] = (inputs["input_ids"] + 1) % 7
            told = dict(zip(names, model(inputs).values(), strict=True))
            compare = ["logits"] if kind == "control" else list(outputs)
            found[kind] += [
                float(np.abs(told[name] - outputs[name]).max() / np.abs(outputs[name]).max()) for name in compare
            ]
    return found


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--recipe")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--bound", type=float, default=1e-5)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print("\n" + json.dumps(compared(Path(asked.models[0]))))
        return
    python, failed = asked.work / "environments" / "openvino_genai" / "bin" / "python", False
    print("| model | median | largest | control, least |\n|---|---|---|---|")
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            kept = recorded(model, asked.recipe, Path(folder))
            command = [python, "-I", __file__, kept, "--inside"]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(printed.splitlines()[-1])
        median, control = statistics.median(found["own"]), min(found["control"])
        print(f"| {model} | {median:.1e} | {max(found['own']):.1e} | {control:.1e} |", flush=True)
        failed |= median > asked.bound or control <= CONTROL
    sys.exit(failed)


if __name__ == "__main__":
    main()
