"""The float32 twin of a bfloat16 program, for runtimes that have no bfloat16 kernels.

Every bfloat16 value is a float32 value, so the twin has the same weights; it computes more finely.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from glm_export.spec.signature import Signature, TensorSpec


def upcast(source: Path, target: Path, weights: str) -> None:
    """Write the twin of ``source`` to ``target``, weights streamed one by one into a file named ``weights``."""
    model = ir.load(source)
    for value in (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for n in model.graph for v in n.outputs),
    ):
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.BFLOAT16:
            value.const_value = ir.LazyTensor(
                partial(_as_float32, tensor),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name,
            )
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    ir.save(model, target, external_data=weights)


def _as_float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32))


def upcast_signature(signature: Signature) -> Signature:
    """The twin's signature."""

    def wide(spec: TensorSpec) -> TensorSpec:
        return TensorSpec(name=spec.name, dtype=spec.dtype.replace("bfloat16", "float32"), dims=spec.dims)

    return Signature(inputs=tuple(map(wide, signature.inputs)), outputs=tuple(map(wide, signature.outputs)))
