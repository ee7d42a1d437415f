"""Weights of an exported program, read back as integers: for recipes whose rounding nobody can repeat from the weights.

GPTQ's integers depend on the corpus; a proof takes them from the program, and so proves what is computed with them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.formats.blockwise import QuantizedRows, integers_of_rows
from glm_export.calibration.formats.prequantized import PrequantizedWeight
from glm_export.spec.weight_formats import PACKED, SCALES, BlockWeights, QdqWeights, WeightFormats


class ProgramIntegers:
    """The integers of a program's weights, memory-mapped."""

    def __init__(self, program: OnnxProgram) -> None:
        initializers = ir.load(program.model_path).graph.initializers
        self._tensors = {name: value.const_value for name, value in initializers.items()}

    def given(self, name: str, formats: WeightFormats, columns: int) -> PrequantizedWeight | None:
        """One weight's integers and scales; None where the program keeps none of it.

        Args:
            name: the parameter.
            formats: what it is stored as.
            columns: K.
        """
        packed, scales = self._tensors.get(f"{name}.{PACKED}"), self._tensors.get(f"{name}.{SCALES}")
        if packed is None or scales is None:
            return None
        values = torch.from_numpy(scales.numpy().astype(np.float32))
        form = formats.decode
        if isinstance(form, QdqWeights):
            integers_KN = torch.from_numpy(packed.numpy().astype(np.int8))
            return PrequantizedWeight(integers=integers_KN.t(), scales=values.t() if form.block else values[:, None])
        assert isinstance(form, BlockWeights)
        rows = QuantizedRows(packed=torch.from_numpy(packed.numpy().copy()), scales=values, zero_points=None)
        return PrequantizedWeight(integers=integers_of_rows(rows, form, columns), scales=values)
