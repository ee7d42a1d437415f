"""GroupQueryAttention over keys and values kept as int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult


@dataclass(frozen=True, slots=True)
class GroupQueryOfIntegers:
    """ONNX Runtime's operator rounds what it keeps by itself, given the scales."""

    scale_of: dict[str, float]
    name: str = "integer cache"

    def matches(self, node: ir.Node) -> MatchResult:
        """One that has a cache."""
        return MATCHED if node.op_type == "GroupQueryAttention" else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output, present key and value."""
        inputs = [*node.inputs, *[None] * (GROUP_QUERY_SCALES - len(node.inputs))]
        for past in node.inputs[3:5]:
            assert past is not None
            assert past.name is not None
            inputs.append(emit.array(f"{past.name}.scale", np.array([self.scale_of[past.name]]), ir.DataType.FLOAT))
        kept = {name: attribute.as_int() for name, attribute in node.attributes.items()}
        return list(
            emit.many(
                "GroupQueryAttention", *inputs, outputs=3, domain=MICROSOFT, **kept, k_quant_type="PER_TENSOR",
                v_quant_type="PER_TENSOR", kv_cache_bit_width=8,
            )
        )  # fmt: skip


# Where the operator's inputs k_scale and v_scale stand.
GROUP_QUERY_SCALES = 12
