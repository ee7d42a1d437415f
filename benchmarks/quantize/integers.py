"""W8A8 three ways: integers on paper as TensorRT documents them, ONNX Runtime, and the PyTorch simulation.

    python benchmarks/quantize/integers.py demo --work /tmp/integers

Exports a small model with `int8-static`, runs it all three ways, and prints one table: where they may differ, and by
how much; then what a kernel may do otherwise than documented, and two faults that must show. Exit code 1 where the
three differ more than rounding allows, or a fault does not show.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.calibration.quantize import fake_quantize
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.proof.cases import parity_cases
from glm_export.proof.check import quantization_of
from glm_export.proof.on_paper import DOCUMENTED, Arithmetic, Entered, PaperProgram, StoredWeight, product, quantize
from glm_export.proof.runners import canonical_signature
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.torch import TorchSession
from glm_export.spec.signature import LOGITS

SAME_PRODUCT = 1e-6
"""Share of a product's largest value that sums in float32 may be off."""
SAME_LOGITS = 1e-2
"""The same of logits: one integer that falls to the other side moves them; without one they are 1e-6 apart."""
OTHERWISE = {
    "input times 1 / scale": Arithmetic(reciprocal=True),
    "saturates at -127": Arithmetic(low=-127),
    "one scale after the other": Arithmetic(scaled_together=False),
}
"""What a kernel may do otherwise, in float32."""
DIVIDED_IN_FLOAT16 = Arithmetic(division="float16")
OTHERWISE_FLOAT16 = {
    "float16 input, divided in float16": DIVIDED_IN_FLOAT16,
    "float16 input, times 1 / scale in float16": Arithmetic(division="float16", reciprocal=True),
    "float16 input, scales multiplied in float16": Arithmetic(scaling="float16"),
}
FAULTS = {
    "control: half away from zero": Arithmetic(ties="away"),
    "control: saturates at 255": Arithmetic(low=0, high=255),
}
Integers = NDArray[Any]


@dataclass(slots=True)
class Row:
    """One line: integers compared, how many moved, by how many steps at most, and the largest share results are off."""

    where: str
    sides: str
    integers: int = 0
    moved: int = 0
    steps: int = 0
    share: float = 0.0

    def compare(self, ours: Integers, theirs: Integers) -> None:
        apart = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
        self.integers += apart.size
        self.moved += int((apart > 0).sum())
        self.steps = max(self.steps, int(apart.max(initial=0)))

    def results(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        largest = float(max(np.abs(ours).max(), np.abs(theirs).max())) or 1.0
        self.share = max(self.share, float(np.abs(ours - theirs).max()) / largest)


class OneProduct:
    """A program's product alone, in ONNX Runtime as it is written, and in PyTorch as it is simulated."""

    def __init__(self, weight: StoredWeight) -> None:
        self.weight = weight
        self._sessions = [_session(_product(weight, output)) for output in ("integers", "y")]
        self._dequantized = torch.from_numpy(weight.integers.astype(np.float32) * weight.scales).t().contiguous()

    def runtime(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        """Integers and result of ONNX Runtime."""
        return [session.run(None, {"x": x})[0] for session in self._sessions]

    def simulated(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        """Integers and result of PyTorch."""
        rounded = fake_quantize(torch.from_numpy(np.ascontiguousarray(x)), self.weight.scale)
        integers = (rounded / self.weight.scale).round().numpy()
        return [integers, torch.nn.functional.linear(rounded, self._dequantized).numpy()]


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _product(weight: StoredWeight, output: str) -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.array(weight.scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
        numpy_helper.from_array(weight.integers, "packed"), numpy_helper.from_array(weight.scales, "scales"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["packed", "scales"], ["weight"], axis=1),
        helper.make_node("MatMul", ["rounded", "weight"], ["y"]),
    ]
    nodes = nodes if output == "y" else nodes[:1]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    kind = TensorProto.FLOAT if output == "y" else TensorProto.INT8
    graph = helper.make_graph(nodes, "product", [x], [helper.make_tensor_value_info(output, kind, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class WholeRuns:
    """A program in ONNX Runtime and its simulation, with the integers that enter each product."""

    def __init__(self, program: OnnxProgram, reference: TorchSession, weights: Sequence[str]) -> None:
        model = onnx.load(str(program.model_path))
        shown = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in shown)
        self._runtime = _session(model)
        self._shown, self._weights = list(shown), list(weights)
        self._reference = reference
        self._seen: dict[str, Integers] = {}
        for name in self._weights:
            module = reference.model.get_submodule(name.removesuffix(".weight"))
            # Behind the simulation's own hook: what it made of the input.
            module.register_forward_pre_hook(partial(self._see, name))

    def _see(self, name: str, _: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        self._seen[name] = given[0].numpy().copy()

    def runtime(self, tensors: dict[str, Any]) -> list[Integers]:
        """Integers of each product, in the program's order."""
        given = {entry.name: tensors[entry.name] for entry in self._runtime.get_inputs()}
        return list(self._runtime.run(self._shown, given))

    def simulated(self, tensors: dict[str, Any], scales: dict[str, float]) -> tuple[list[Integers], NDArray[Any]]:
        """The same of the simulation, and its logits."""
        logits = self._reference.run(tensors)[LOGITS]
        return [np.rint(self._seen[name] / np.float32(scales[name])) for name in self._weights], logits


def planted(weight: StoredWeight) -> NDArray[Any]:
    """Inputs that lie halfway between integers, and beyond both ends: every sign and place."""
    steps = np.arange(-200, 200, dtype=np.float32) + np.float32(0.5)
    columns = weight.integers.shape[0]
    return np.resize(steps, (len(steps), columns)).astype(np.float32) * np.float32(weight.scale)


def measure(program: OnnxProgram, checkpoint: Checkpoint, how: Arithmetic = DOCUMENTED) -> list[Row]:
    """Every line of the table, with another arithmetic on paper where a fault is to show."""
    paper = PaperProgram(program.model_path, how)
    halves = PaperProgram(program.model_path, DIVIDED_IN_FLOAT16)
    rows = {
        (where, sides): Row(where, sides)
        for where in ("input rounded, the same input", "product, the same input", "whole model")
        for sides in ("paper, ONNX Runtime", "paper, PyTorch")
    }
    drift = Row("whole model, divided in float16", "documented, otherwise")
    entered: list[Entered] = []
    alone = {name: OneProduct(weight) for name, weight in paper.weights.items()}
    scales = {name: weight.scale for name, weight in paper.weights.items()}
    with TorchSession(checkpoint, "float32", quantization=quantization_of(program)) as reference:
        cases = parity_cases(reference, program.config, canonical_signature(program))
        whole = WholeRuns(program, reference, list(paper.weights))
        with OrtSession(program) as runtime:
            for case in cases:
                logits = paper.run(case.tensors)[LOGITS]
                entered += paper.entered
                drift.results(logits, halves.run(case.tensors)[LOGITS])
                for one, narrow in zip(paper.entered, halves.entered, strict=True):
                    drift.compare(one.integers, narrow.integers)
                integers, simulated = whole.simulated(case.tensors, scales)
                runs = {
                    "paper, ONNX Runtime": (whole.runtime(case.tensors), runtime.run(case.tensors)[LOGITS]),
                    "paper, PyTorch": (integers, simulated),
                }
                for sides, (theirs, their_logits) in runs.items():
                    row = rows["whole model", sides]
                    row.results(logits, their_logits)
                    for one, other in zip(paper.entered, theirs, strict=True):
                        row.compare(one.integers, other.reshape(one.integers.shape))
    ties = [
        Entered(weight=weight, x=planted(weight), integers=quantize(planted(weight), weight.scale, how))
        for weight in paper.weights.values()
    ]
    for one in [*entered, *ties]:
        exact = product(one.integers, one.weight, how)
        for sides, of in (("paper, ONNX Runtime", OneProduct.runtime), ("paper, PyTorch", OneProduct.simulated)):
            rounded, result = of(alone[one.weight.name], one.x)
            rows["input rounded, the same input", sides].compare(one.integers, rounded)
            rows["product, the same input", sides].results(exact, result)
    return [*rows.values(), *otherwise(entered), drift, *faults(entered)]


def otherwise(entered: Sequence[Entered]) -> Iterator[Row]:
    """What a kernel may do that is not documented, beside what is."""
    for name, how in OTHERWISE.items():
        yield _apart(Row(name, "documented, otherwise"), entered, how, lambda one: (one.x, one.weight))
    for name, how in OTHERWISE_FLOAT16.items():
        yield _apart(Row(name, "documented, otherwise"), entered, how, _halved)


def faults(entered: Sequence[Entered]) -> Iterator[Row]:
    """What must show, on planted inputs."""
    once = {one.weight.name: one for one in entered}.values()
    for name, how in FAULTS.items():
        yield _apart(Row(name, "planted inputs"), list(once), how, lambda one: (planted(one.weight), one.weight))


def _halved(one: Entered) -> tuple[NDArray[Any], StoredWeight]:
    """Input and scales as a float16 program has them."""
    scales = one.weight.scales.astype(np.float16).astype(np.float32)
    weight = replace(one.weight, scale=float(np.float16(one.weight.scale)), scales=scales)
    return one.x.astype(np.float16).astype(np.float32), weight


def _apart(
    row: Row, entered: Sequence[Entered], how: Arithmetic,
    given: Callable[[Entered], tuple[NDArray[Any], StoredWeight]],
) -> Row:  # fmt: skip
    for one in entered:
        x, weight = given(one)
        ours, theirs = quantize(x, weight.scale, DOCUMENTED), quantize(x, weight.scale, how)
        row.compare(ours, theirs)
        row.results(product(ours, weight), product(theirs, weight, how))
    return row


def failures(rows: Sequence[Row]) -> list[str]:
    """What is not as it must be."""
    found = []
    for row in rows:
        if row.where.startswith("control") and not row.moved:
            found.append(f"{row.where}: should move integers, moved none")
        elif "rounded, the same" in row.where and row.moved:
            found.append(f"{row.where} ({row.sides}): should move none, moved {row.moved}")
        elif "product, the same" in row.where and row.share > SAME_PRODUCT:
            found.append(f"{row.where} ({row.sides}): should be {SAME_PRODUCT} apart at most, found {row.share:.1e}")
        elif row.where == "whole model" and row.share > SAME_LOGITS:
            found.append(f"{row.where} ({row.sides}): should be {SAME_LOGITS} apart at most, found {row.share:.1e}")
    return found


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| where | between | integers moved | by steps | results apart |", "|---|---|---|---|---|"]
    for row in rows:
        moved, steps = (f"{row.moved:,} of {row.integers:,}", str(row.steps)) if row.integers else ("–", "–")
        apart = f"{row.share:.1e}" if row.share or "rounded, the same" not in row.where else "–"
        lines.append(f"| {row.where} | {row.sides} | {moved} | {steps} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("checkpoint")
    options.add_argument("--work", type=Path, required=True)
    arguments = options.parse_args()
    checkpoint = api.open_checkpoint(arguments.checkpoint)
    out = arguments.work / "int8-static"
    if not out.exists():
        ranges = api.calibrate(checkpoint, arguments.work / "ranges")
        api.export(checkpoint, out, dialect="onnx", recipe="int8-static", ranges=ranges)
    rows = measure(load_program(out), checkpoint)
    print(table(rows))
    found = failures(rows)
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
