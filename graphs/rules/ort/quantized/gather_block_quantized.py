"""The lookup of tokens in a table of integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult
from glm_export.spec.weight_formats import EMBEDDING, BlockWeights


@dataclass(frozen=True, slots=True)
class QuantizedGather:
    """``Gather(table[V, H], ids)`` becomes ``GatherBlockQuantized(packed[V, …], ids, scales[V, H / block])``."""

    form: BlockWeights | None
    dtype: str
    name: str = "embedding"

    def matches(self, node: ir.Node) -> MatchResult:
        """The lookup of tokens, where the recipe names its table."""
        table = node.inputs[0] if node.op_type == "Gather" else None
        return MATCHED if table is not None and table.name == EMBEDDING and self.form is not None else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return rows ``[B, S, H]``."""
        table, ids = node.inputs
        assert table is not None
        assert table.shape is not None
        form = self.form
        assert form is not None
        rows, columns = (int(size) for size in table.shape)  # type: ignore[arg-type]
        packed, scales, *zero_points = (
            emit.weight(spec) for spec in form.stored_tensors(EMBEDDING, rows, columns, self.dtype)
        )
        return [
            emit.op(
                LOOKUP, packed, ids, scales, *zero_points, domain=MICROSOFT, bits=form.bits, block_size=form.block,
                gather_axis=0, quantize_axis=1,
            )
        ]  # fmt: skip


LOOKUP = "GatherBlockQuantized"
