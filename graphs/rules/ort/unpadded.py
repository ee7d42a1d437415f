"""A call's real tokens alone, one row of all of them: padding behind rows is no token, and is not multiplied.

``[B, S, X]``, of which each row's first ``query_seqlens`` columns are real, becomes ``[1, N, X]``, row after row;
attention alone knows rows, and is given them. Padding between rows holds its row's last token there, which is finite.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, int_attribute
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import new_tokens
from glm_export.spec.signature import INPUT_IDS, QUERY_LENGTHS

BATCH_AXIS, COLUMN_AXIS = 0, 1
COUNTS = {"Shape", "Size"}
LOOKUPS = {"Gather", "GatherBlockQuantized"}
ATTENTION = "GroupQueryAttention"
TURNED_BY_POSITIONS = 4
"""Inputs of a rotation: values, tables of cosines and sines, positions."""
PROJECTED = 3
"""The attention's first inputs: queries, keys and values, or all three in the first."""


def told(emit: Emitter) -> ir.Value:
    """Real tokens of each row, int64 ``[B, 1]``; once per rule."""
    if ("told",) not in emit.shared:
        counts_B = emit.op("Cast", emit.inputs[QUERY_LENGTHS], to=new_tokens.INT64)
        emit.shared["told",] = emit.op("Unsqueeze", counts_B, emit.ints(COLUMN_AXIS))
    return emit.shared["told",]


def packed(emit: Emitter, x_BSX: ir.Value) -> ir.Value:
    """``[1, N, X]``, or ``[1, N]`` of ``[B, S]``: what stands at real tokens."""
    if ("real",) not in emit.shared:
        real_BS = emit.op("Less", _columns(emit), told(emit))
        real_N2 = emit.op("Transpose", emit.op("NonZero", real_BS), perm=[1, 0])
        emit.shared["real",] = emit.op("Unsqueeze", real_N2, emit.ints(BATCH_AXIS))
    return emit.op("GatherND", x_BSX, emit.shared["real",])


def spread(emit: Emitter, x_1NX: ir.Value) -> ir.Value:
    """``[B, S, X]``: rows again."""
    if ("places",) not in emit.shared:
        emit.shared["places",] = place(emit, _columns(emit))
    return at(emit, x_1NX, emit.shared["places",])


def place(emit: Emitter, columns_BK: ir.Value) -> ir.Value:
    """Where columns of rows stand in ``[1, N]``, int64 ``[B, K, 2]``; those behind a row's own stand for its last."""
    last_B1 = emit.op("Sub", told(emit), emit.ints(1))
    starts_B1 = emit.op("CumSum", told(emit), emit.scalar(BATCH_AXIS, ir.DataType.INT64), exclusive=1)
    places_BK = emit.op("Add", starts_B1, emit.op("Min", columns_BK, last_B1))
    # A row without tokens has no last; nobody reads it.
    places_BK1 = emit.op("Unsqueeze", emit.op("Max", places_BK, emit.ints(0)), emit.ints(LAST))
    return emit.op("Concat", emit.op("Mul", places_BK1, emit.ints(0)), places_BK1, axis=LAST)


def at(emit: Emitter, x_1NX: ir.Value, places_BK2: ir.Value) -> ir.Value:
    """``[B, K, X]``."""
    return emit.op("GatherND", x_1NX, places_BK2)


def _columns(emit: Emitter) -> ir.Value:
    if ("columns",) not in emit.shared:
        ones_BS = new_tokens.ones(emit)
        emit.shared["columns",] = emit.op("CumSum", ones_BS, emit.scalar(1, ir.DataType.INT64), exclusive=1)
    return emit.shared["columns",]


class RealTokensEmbedded:
    """``Gather(table, input_ids)`` becomes ``Gather(table, real ids [1, N])``; who asks for their number gets N.

    A mixture asks for it, and a product that has another form for many tokens.
    """

    name = "told_embedding"

    def matches(self, node: ir.Node) -> MatchResult:
        """The table's, of whatever format."""
        looks_up = node.op_type in LOOKUPS and node.inputs[1] is not None and node.inputs[1].name == INPUT_IDS
        return MATCHED if looks_up else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[1, N, H]``."""
        ids_BS = emit.inputs[INPUT_IDS]
        ids_1N = packed(emit, ids_BS)
        for use in ids_BS.uses():
            if use.node.op_type in COUNTS:
                emit.replaced.append((use.node.outputs[0], emit.again(use.node, ids_1N)[0]))
        table, _, *others = node.inputs
        return emit.again(node, table, ids_1N, *others)


class RowsTurned:
    """A rotation beside the attention turns rows ``[B, S, X]``: a table is as long as one row may be, not as all."""

    name = "told_rotation"

    def matches(self, node: ir.Node) -> MatchResult:
        """By positions in a table, heads side by side."""
        if node.op_type != "RotaryEmbedding" or len(node.inputs) != TURNED_BY_POSITIONS:
            return NOT_MINE
        return MATCHED if "num_heads" in node.attributes else refused("its heads are an axis of their own")

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the rotated ``x`` ``[1, N, X]``."""
        x, *table_and_positions = node.inputs
        assert x is not None
        return [packed(emit, emit.again(node, spread(emit, x), *table_and_positions)[0])]


class RowsAttended:
    """Attention reads rows ``[B, S, X]``, and what it says of real tokens goes on."""

    name = "told_rows"

    def matches(self, node: ir.Node) -> MatchResult:
        """One that is told how many tokens each row has."""
        if node.op_type != ATTENTION:
            return NOT_MINE
        return (
            MATCHED
            if node.inputs[-1] is not None and node.inputs[-1].name == QUERY_LENGTHS
            else refused("nothing tells it how many tokens each row has")
        )

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[1, N, X]``, present key and value."""
        projected = [value and spread(emit, value) for value in node.inputs[:PROJECTED]]
        output_BSX, *presents = emit.again(node, *projected, *node.inputs[PROJECTED:])
        return [packed(emit, output_BSX), *presents]


class LastOfRealTokens:
    """``GatherND(x [B, S, H], columns)`` becomes ``GatherND(x [1, N, H], places)``, before the head."""

    name = "told_last_token"

    def matches(self, node: ir.Node) -> MatchResult:
        """What :mod:`last_token` made."""
        found = node.op_type == "GatherND" and int_attribute(node, "batch_dims") == 1
        return MATCHED if found else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[B, K, H]``."""
        x_1NH, columns_BK1 = node.inputs
        assert x_1NH is not None
        assert columns_BK1 is not None
        return [at(emit, x_1NH, place(emit, emit.op("Squeeze", columns_BK1, emit.ints(LAST))))]


class RowsTold:
    """What a program says of every token, logits or hidden states, it says in rows ``[B, S, X]``."""

    name = "told_outputs"

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def matches(self, node: ir.Node) -> MatchResult:
        """It makes an output of that kind."""
        return MATCHED if any(value.name in self.names for value in node.outputs) else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the node's own, which others read."""
        made = emit.again(node, *node.inputs)
        for value, old in zip(made, node.outputs, strict=True):
            if old.name in self.names:
                emit.told.append((value, spread(emit, value)))
        return made
