"""Canonical attention over a cache of fixed size that is written in place, and the last token of padded rows.

Shapes: B batch, S new tokens, M columns of the cache, N query heads, K key-value heads, D head size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from glm_export.graphs.queries import int_attribute, producer_of
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.spec.signature import (
    ATTENTION_MASK,
    CACHE_LENGTH_AXIS,
    INPUT_IDS,
    POSITION_IDS,
    WRITE_INDICES,
)

INT64 = ir.DataType.INT64


def _dim(value: ir.Value | None, axis: int) -> int | None:
    """A size, where the program fixes it."""
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


class AttentionOnStaticCache:
    """New keys and values are written into the cache, and attention reads the whole of it.

    ``RotaryEmbedding(q), RotaryEmbedding(k) -> Attention(q, k, v, mask, past) -> output, present``, with packed heads,
    becomes::

        qkv -> Reshape, Transpose -> Split
          q -> RotaryEmbedding ---------------------------------------------+
          k -> RotaryEmbedding -> TensorScatter(past key, ., write) --> Attention(., ., ., mask)
          v --------------------> TensorScatter(past value, ., write) ------+   -> Transpose, Reshape

    with heads apart (4-D) throughout; what the two ``TensorScatter`` return are the presents. Queries, keys and values
    are split as heads: a split of channels TensorRT pulls into the product before it, where heads are as many for keys
    as for queries, and dequantizes an INT8 weight for it in every step (TensorRT-RTX 1.7). A column that holds no
    token yet, or another batch's, lies beyond every position of its row, so the mask hides it.

    For a causal family ``write = position_ids[:, 0]`` and ``mask = columns <= position_ids``. A prefix family is told
    both; there a query also sees the column it is written to, as in the canonical program: padding that saw nothing
    could be NaN, depending on the runtime.
    """

    name = "attention"

    def matches(self, node: ir.Node) -> MatchResult:
        """Packed heads, a mask, and a cache whose size the signature fixes."""
        if node.op_type != "Attention":
            return NOT_MINE
        if len(node.inputs) != 6 or any(value is None for value in node.inputs):
            return refused(f"expected q, k, v, mask and the two pasts, found {len(node.inputs)} inputs")
        if int_attribute(node, "is_causal"):
            return refused("it is causal by itself; the mask must say it")
        if _dim(node.inputs[0], -1) is None:
            return refused("the width of the queries is unknown")
        return MATCHED if _dim(node.inputs[4], CACHE_LENGTH_AXIS) else refused("the cache has no fixed size")

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]``, present key and value ``[B, K, M, D]``."""
        q, k, v, _, past_key, past_value = node.inputs
        heads, kv_heads = int_attribute(node, "q_num_heads"), int_attribute(node, "kv_num_heads")
        channels, columns = _dim(q, -1), _dim(past_key, CACHE_LENGTH_AXIS)
        assert channels is not None
        assert columns is not None
        head_dim = channels // heads
        write, mask = self._write_and_mask(columns, emit)
        query, new_key, new_value = _split_heads([q, k, v], [heads, kv_heads, kv_heads], head_dim, emit)
        key, value = (
            emit.op("TensorScatter", past, new, write, axis=CACHE_LENGTH_AXIS)
            for past, new in ((past_key, new_key), (past_value, new_value))
        )
        mixed = emit.op("Attention", query, key, value, mask)
        together = emit.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return [emit.op("Reshape", together, emit.ints(0, 0, channels)), key, value]

    def _write_and_mask(self, columns: int, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """First column to write ``[B]``, and who sees which column, bool ``[B, 1, S, M]``; once per program."""
        if ("write",) not in emit.shared:
            write, mask = self._given(columns, emit) if WRITE_INDICES in emit.inputs else self._counted(columns, emit)
            emit.shared["write",], emit.shared["mask",] = write, mask
        return emit.shared["write",], emit.shared["mask",]

    def _counted(self, columns: int, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Causal: a token's position is its column."""
        positions = emit.inputs[POSITION_IDS]
        write = emit.op("Gather", positions, emit.scalar(0, INT64), axis=1)
        seen = emit.op("LessOrEqual", _counting(columns, emit), emit.op("Unsqueeze", positions, emit.ints(1, 3)))
        return write, seen

    def _given(self, columns: int, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Prefix: two positions say nothing about columns, so both come from outside."""
        write = emit.inputs[WRITE_INDICES]
        queries = emit.op("Squeeze", emit.op("Shape", emit.inputs[INPUT_IDS], start=1, end=2))
        own = emit.op("Add", emit.op("Unsqueeze", write, emit.ints(1)), _counting(queries, emit))
        itself = emit.op("Equal", _counting(columns, emit), emit.op("Unsqueeze", own, emit.ints(1, 3)))
        return write, emit.op("Or", emit.inputs[ATTENTION_MASK], itself)


def _counting(end: int | ir.Value, emit: Emitter) -> ir.Value:
    """``[0, 1, ... end - 1]``."""
    stop = emit.scalar(end, INT64) if isinstance(end, int) else end
    return emit.op("Range", emit.scalar(0, INT64), stop, emit.scalar(1, INT64))


def _split_heads(
    packed: Sequence[ir.Value | None], heads: Sequence[int], head_dim: int, emit: Emitter
) -> list[ir.Value]:
    """Queries, keys and values ``[B, S, heads * D] -> [B, heads, S, D]``; a rotation right before comes after.

    There it has the layout TensorRT's own layer wants, and no exchange of axes more than attention needs. What one
    product made for all three changes its layout once.
    """
    rotaries = [producer_of(x, "RotaryEmbedding") for x in packed]
    straight = [rotary.inputs[0] if rotary is not None else x for rotary, x in zip(rotaries, packed, strict=True)]
    split = producer_of(straight[0], "Split")
    if split is not None and list(split.outputs) == straight:
        together = _heads_apart(split.inputs[0], sum(heads), head_dim, emit)
        parts = list(emit.many("Split", together, emit.ints(*heads), outputs=len(heads), axis=1))
    else:
        parts = [_heads_apart(x, count, head_dim, emit) for x, count in zip(straight, heads, strict=True)]
    return [
        part if rotary is None else _rotated(part, rotary, emit) for part, rotary in zip(parts, rotaries, strict=True)
    ]


def _heads_apart(x: ir.Value | None, heads: int, head_dim: int, emit: Emitter) -> ir.Value:
    apart = emit.op("Reshape", x, emit.ints(0, 0, heads, head_dim))
    return emit.op("Transpose", apart, perm=[0, 2, 1, 3])


def _rotated(x: ir.Value, rotary: ir.Node, emit: Emitter) -> ir.Value:
    _, *angles = rotary.inputs
    return emit.op(
        "RotaryEmbedding", x, *angles,
        interleaved=int_attribute(rotary, "interleaved"),
        rotary_embedding_dim=int_attribute(rotary, "rotary_embedding_dim"),
    )  # fmt: skip
