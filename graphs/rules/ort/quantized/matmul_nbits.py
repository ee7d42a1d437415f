"""``MatMulNBits``: integers with one scale a block.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.rewriter import MICROSOFT, Emitter
from glm_export.graphs.rules.ort.quantized.quantized_matmul import ProductInputs, StoredProduct
from glm_export.spec.weight_formats import BlockWeights


def emit_product(form: BlockWeights, inputs: ProductInputs, into: Emitter) -> ir.Value:
    """``MatMulNBits(x, packed[N, C, …], scales[N, C], zero points or none, no order of columns, bias)``."""
    packed, scales, *zero_points = inputs.stored
    sizes = {"K": inputs.columns, "N": inputs.rows, "bits": form.bits, "block_size": form.block}
    return into.op(
        PRODUCT.operator,
        *(inputs.x, packed, scales, zero_points[0] if zero_points else None, None, inputs.bias),
        domain=MICROSOFT,
        **sizes,
        accuracy_level=form.accuracy_level,
    )


PRODUCT = StoredProduct("MatMulNBits", emit_product)
