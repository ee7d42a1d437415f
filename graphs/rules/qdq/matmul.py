"""Explicit quantization: products between ``QuantizeLinear`` and ``DequantizeLinear``, as TensorRT reads them.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from glm_export.graphs.queries import LAST, product_weight
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult
from glm_export.spec.capabilities import LATER_QDQ_OPSET
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.weight_formats import QMAX, WeightFormats

Scales = NDArray[np.float32]
REDUCE_MAX_AXES_INPUT = 18
INT8_QMAX = QMAX["int8"]
LEAST = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
"""The smallest normal number of a dtype: what a row of less is divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputNumbers:
    """What calibration found for the inputs of products, by weight.

    ``scales``: of rounded inputs. ``divisors``: float32 ``[K]``, smoothing that no parameter could take.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    divisors: Mapping[str, Scales] = field(default_factory=dict)


def divided(x: ir.Value, weight: str, numbers: InputNumbers, emit: Emitter, dtype: str) -> ir.Value:
    """The input of a product, smoothed where the program must do it: ``Mul(x, 1 / s[K])``."""
    divisor = numbers.divisors.get(weight)
    if divisor is None:
        return x
    return emit.op("Mul", x, emit.array(f"{weight}.divisor", 1 / divisor, ir.DataType[ONNX_DTYPES[dtype]]))


@dataclass(frozen=True, slots=True)
class ExplicitMatMul:
    """A product with a float weight becomes one with a dequantized weight, and its input is rounded where calibrated.

    ``MatMul(x, W[K, N])`` becomes ``MatMul(x', DequantizeLinear(packed[K, N], scales))``, with scales ``[N]`` on axis 1
    or ``[C, N]`` for blocks along axis 0; and ``x' = DequantizeLinear(QuantizeLinear(x, scale, 0), scale, 0)`` where
    the form rounds activations. Where it gives each token a scale of its own, ``x`` is divided by its row's largest
    magnitude before, the scale is 1 / 127 for all, and the product is multiplied by what was divided by.

    ``opset``: of the dialect.
    """

    formats: Mapping[str, WeightFormats]
    dtype: str
    numbers: InputNumbers
    opset: int = LATER_QDQ_OPSET
    name: str = "explicit weights"

    def matches(self, node: ir.Node) -> MatchResult:
        """A product with a weight the recipe gives such a form."""
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.name is None or weight.name not in self.formats:
            return NOT_MINE
        return MATCHED if self.formats[weight.name].decode.explicit else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[..., N]``."""
        x, name, columns, rows = product_weight(node)
        form = self.formats[name].decode
        x = divided(x, name, self.numbers, emit, self.dtype)
        largest = self._largest(x, emit) if form.rounds_each_token else None
        if form.activation_dtype is not None:
            scale = emit.array(f"{name}.input_scale", self.numbers.scales[name], self._dtype)
            x = _rounded(x, scale, form.activation_dtype, emit)
        elif largest is not None:
            x = _rounded(emit.op("Div", x, largest), emit.scalar(1 / INT8_QMAX, self._dtype), "int8", emit)
        packed, scales = (emit.weight(spec) for spec in form.stored_tensors(name, rows, columns, self.dtype))
        attributes: dict[str, Any] = (
            {"axis": 1} if form.scale_block is None else {"axis": 0, "block_size": form.scale_block}
        )
        product = emit.op("MatMul", x, emit.op("DequantizeLinear", packed, scales, **attributes))
        return [product if largest is None else emit.op("Mul", product, largest)]

    @property
    def _dtype(self) -> ir.DataType:
        return ir.DataType[ONNX_DTYPES[self.dtype]]

    def _largest(self, x: ir.Value, emit: Emitter) -> ir.Value:
        """Of each row ``[..., 1]``; above 0, so that a row of zeros can be divided by it."""
        magnitudes = emit.op("Abs", x)
        # From opset 18 on the axes are an input.
        largest = (
            emit.op("ReduceMax", magnitudes, axes=[LAST], keepdims=1)
            if self.opset < REDUCE_MAX_AXES_INPUT
            else emit.op("ReduceMax", magnitudes, emit.ints(LAST), keepdims=1)
        )
        return emit.op("Max", largest, emit.scalar(LEAST[self.dtype], self._dtype))


def _rounded(x: ir.Value, scale: ir.Value, dtype: str, emit: Emitter) -> ir.Value:
    zero = emit.scalar(0, ir.DataType[ONNX_DTYPES[dtype]])
    return emit.op("DequantizeLinear", emit.op("QuantizeLinear", x, scale, zero), scale, zero)
