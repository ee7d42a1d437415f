"""Weights of an exported program, read back as integers: for recipes whose rounding nobody can repeat from the weights.

GPTQ's integers depend on the corpus; a proof takes them from the program, and so proves what is computed with them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.formats import PrequantizedWeight, read_back
from glm_export.spec.weight_formats import PACKED, SCALES, ExpertWeights, WeightFormats


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
        if isinstance(formats.decode, ExpertWeights):
            # Rounded to the nearest by every recipe, and stacked: the reference rounds them again.
            return None
        packed, scales = self._tensors.get(f"{name}.{PACKED}"), self._tensors.get(f"{name}.{SCALES}")
        if packed is None or scales is None:
            return None
        dtype = np.int8 if formats.decode.explicit else np.uint8
        stored = torch.from_numpy(packed.numpy().astype(dtype))
        return read_back(formats.decode, stored, torch.from_numpy(scales.numpy().astype(np.float32)), columns)
