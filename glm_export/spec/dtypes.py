"""Dtypes by the names numpy, PyTorch and ONNX share, and what each takes in memory."""

from __future__ import annotations

DTYPES = ("float32", "float16", "bfloat16")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STORED_BITS = {
    "float32": 32, "float16": 16, "bfloat16": 16, "float8e4m3fn": 8, "int64": 64, "int8": 8, "uint8": 8, "int4": 4,
    "bool": 8,
}  # fmt: skip
"""Of one value in a file of weights, or in memory."""
