"""The one table of dtypes: our names, which numpy and PyTorch share, and what ONNX and TensorRT call them.

Plain strings: nothing is imported for them. ``getattr(torch, torch_name)`` and ``numpy.dtype(name)`` give the objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype. ``bits``: of a value as stored. ``onnx``: ``TensorProto``'s name. ``tensorrt``: ``DataType``'s.

    ``numpy``: numpy has it. ``torch``: PyTorch's name where it differs; empty where it has none. ``triton``: the name
    that Triton Inference Server has behind ``TYPE_``; empty where it has none.
    """

    bits: int
    onnx: str
    tensorrt: str
    numpy: bool = True
    torch: str | None = None
    triton: str = ""


TABLE = {
    "float32": DType(32, "FLOAT", "FLOAT", triton="FP32"),
    "float16": DType(16, "FLOAT16", "HALF", triton="FP16"),
    "bfloat16": DType(16, "BFLOAT16", "BF16", numpy=False, triton="BF16"),
    "float8e4m3fn": DType(8, "FLOAT8E4M3FN", "FP8", numpy=False, torch="float8_e4m3fn"),
    "int64": DType(64, "INT64", "INT64", triton="INT64"),
    "int32": DType(32, "INT32", "INT32", triton="INT32"),
    "int8": DType(8, "INT8", "INT8", triton="INT8"),
    "uint8": DType(8, "UINT8", "UINT8", triton="UINT8"),
    "int4": DType(4, "INT4", "INT4", numpy=False, torch=""),
    "bool": DType(8, "BOOL", "BOOL", triton="BOOL"),
}
DTypeName = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[DTypeName, ...] = get_args(DTypeName)
"""Of a program's weights, cache and logits."""
STORED_BITS = {name: dtype.bits for name, dtype in TABLE.items()}
"""Of one value in a file of weights, or in memory."""
DTYPE_BYTES: dict[str, int] = {name: TABLE[name].bits // 8 for name in DTYPES}
ONNX_DTYPES = {name: dtype.onnx for name, dtype in TABLE.items()}
"""Our names in ONNX's words."""
TRITON_DTYPES = {name: dtype.triton for name, dtype in TABLE.items() if dtype.triton}
"""Our names in Triton's words."""
FROM_TENSORRT = {dtype.tensorrt: name for name, dtype in TABLE.items()}
"""TensorRT's names in our words."""
NUMPY_DTYPES = frozenset(name for name, dtype in TABLE.items() if dtype.numpy)
"""Those numpy has: what ONNX Runtime's Python API takes and gives."""


def torch_name(name: str) -> str:
    """What PyTorch calls a dtype."""
    return TABLE[name].torch or name
