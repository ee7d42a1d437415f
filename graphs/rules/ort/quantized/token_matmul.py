"""``MatMulIntegerToFloat``: 8-bit integers with one scale per channel; each row of the input is rounded by its own.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST
from glm_export.graphs.rewriter import MICROSOFT, Emitter
from glm_export.graphs.rules.ort.quantized.quantized_matmul import ProductInputs, StoredProduct
from glm_export.graphs.rules.qdq.matmul import INT8_QMAX, LEAST
from glm_export.spec.weight_formats import TokenWeights


def emit_product(_: TokenWeights, inputs: ProductInputs, into: Emitter) -> ir.Value:
    """``MatMulIntegerToFloat(QuantizeLinear(x / m, 1 / 127), packed[K, N], 1 / 127, scales[N]) * m + bias``.

    m ``[..., 1]`` is each row's largest magnitude, so the bias comes after it. Both zero points are 0.
    """
    least = into.scalar(LEAST["float32"], ir.DataType.FLOAT)
    largest = into.op("ReduceMax", into.op("Abs", inputs.x), into.ints(LAST), keepdims=1)
    largest = into.op("Max", largest, least)
    step, zero = into.scalar(1 / INT8_QMAX, ir.DataType.FLOAT), into.scalar(0, ir.DataType.INT8)
    rounded = into.op("QuantizeLinear", into.op("Div", inputs.x, largest), step, zero)
    packed, scales = inputs.stored
    product = into.op(PRODUCT.operator, rounded, packed, step, scales, zero, domain=MICROSOFT)
    product = into.op("Mul", product, largest)
    return product if inputs.bias is None else into.op("Add", product, inputs.bias)


PRODUCT = StoredProduct("MatMulIntegerToFloat", emit_product)
