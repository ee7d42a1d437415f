"""ONNX Runtime's own operators.

Imports the rewriter, queries and spec; this file alone, which dialects ask, loads no onnx.
"""

from __future__ import annotations

TABLE_WIDTH_MULTIPLE = 8


def fuses_rotation(table_width: int) -> bool:
    """Whether GroupQueryAttention takes tables ``[M, table_width]``; ONNX Runtime 1.31 wants a multiple of 8."""
    return table_width % TABLE_WIDTH_MULTIPLE == 0
