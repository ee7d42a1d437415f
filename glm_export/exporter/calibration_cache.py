"""For TensorRT up to 10, which quantizes implicitly: a float program's tensors and how far they reach."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from glm_export.artifacts.program import MODEL
from glm_export.calibration.ranges import Ranges
from glm_export.calibration.trt_cache import CALIBRATION_CACHE, cache_text
from glm_export.spec.weight_formats import HEAD

OBSERVER = "mse"
"""Implicit scales have one value a tensor and nothing moves outliers away: what loses least squared error."""


def product_inputs(model: ir.Model) -> dict[str, str]:
    """The tensor each linear weight's product reads, by parameter name."""
    return {
        node.inputs[1].name: node.inputs[0].name
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()
        if node.inputs[0] is not None and node.inputs[0].name and node.inputs[1].name
    }


def write_calibration_cache(folder: Path, ranges: Ranges) -> None:
    """Write a calibration cache beside a float program; the head's input is left out, so the head stays in float."""
    inputs = product_inputs(ir.load(folder / MODEL))
    thresholds = {
        inputs[weight]: ranges.threshold(weight, OBSERVER)
        for weight in ranges.inputs
        if weight in inputs and weight != HEAD
    }
    (folder / CALIBRATION_CACHE).write_text(cache_text(thresholds), encoding="ascii")
