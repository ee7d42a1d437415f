"""A call's new tokens, counted where the ids are.

``Shape`` would say it more simply, and leaves its answer in the host's memory: next to numbers on a GPU that is a copy
in every step, and ONNX Runtime captures no graph with one (``enable_cuda_graph``).
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import producer_of
from glm_export.graphs.rewriter import Emitter
from glm_export.spec.signature import INPUT_IDS

INT64 = int(ir.DataType.INT64)


def ones(emit: Emitter) -> ir.Value:
    """One for each token, int64 ``[B, S]``; once per program."""
    if ("ones",) not in emit.shared:
        ids = emit.inputs[INPUT_IDS]
        emit.shared["ones",] = emit.op("Cast", emit.op("Equal", ids, ids), to=INT64)
    return emit.shared["ones",]


def count(emit: Emitter) -> ir.Value:
    """S, int64 ``[B, 1]``; once per program."""
    if ("new tokens",) not in emit.shared:
        emit.shared["new tokens",] = emit.op("ReduceSum", ones(emit), emit.ints(1), keepdims=1)
    return emit.shared["new tokens",]


def is_count(node: ir.Node) -> bool:
    """Whether a node is the one that :func:`count` made."""
    cast = producer_of(node.inputs[0], "Cast") if node.op_type == "ReduceSum" else None
    equal = producer_of(cast.inputs[0], "Equal") if cast is not None else None
    return equal is not None and equal.inputs[0] is equal.inputs[1]
