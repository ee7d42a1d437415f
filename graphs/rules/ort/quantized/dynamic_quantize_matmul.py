"""``DynamicQuantizeMatMul``: 8-bit integers with one scale per channel; inputs are rounded as they come.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.rewriter import MICROSOFT, Emitter
from glm_export.graphs.rules.ort.quantized.quantized_matmul import ProductInputs, StoredProduct
from glm_export.spec.weight_formats import ChannelWeights


def emit_product(_: ChannelWeights, inputs: ProductInputs, into: Emitter) -> ir.Value:
    """``DynamicQuantizeMatMul(x, packed[K, N], scales[N], no zero point, bias)``."""
    return into.op(PRODUCT.operator, inputs.x, *inputs.stored, None, inputs.bias, domain=MICROSOFT)


PRODUCT = StoredProduct("DynamicQuantizeMatMul", emit_product)
