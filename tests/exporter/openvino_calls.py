"""Run in OpenVINO's environment: recorded calls of a program, and what OpenVINO answers to them.

python openvino_calls.py MODEL.onnx CALLS.npz ANSWERS.npz
"""

from __future__ import annotations

import sys

import numpy as np
import openvino


def main(model: str, calls: str, answers: str) -> None:
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    # Its own choice on some processors is bfloat16.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in compiled.outputs]
    with np.load(calls) as given:
        numbers = sorted({key.split("/")[0] for key in given})
        found: dict[str, np.ndarray] = {}
        for number in numbers:
            inputs = {port.get_any_name(): given[f"{number}/{port.get_any_name()}"] for port in compiled.inputs}
            answer = dict(zip(names, compiled(inputs).values(), strict=True))
            found |= {f"{number}/{name}": value for name, value in answer.items()}
    np.savez(answers, **found)
    print(openvino.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
