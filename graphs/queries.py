"""What rules ask of the nodes they match."""

from __future__ import annotations

import onnx_ir as ir

LAST = -1


def int_attribute(node: ir.Node, name: str, default: int = 0) -> int:
    """An attribute's value, or ``default`` where the node does not give it."""
    return node.attributes[name].as_int() if name in node.attributes else default


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, where it is of that operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def product_weight(node: ir.Node) -> tuple[ir.Value, str, int, int]:
    """What a product reads, and its weight's name, columns K and rows N; weights are stored ``[K, N]``."""
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    assert weight.name is not None
    assert weight.shape is not None
    columns, rows = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    return x, weight.name, columns, rows


def last_dim(value: ir.Value | None) -> int:
    """The size of the last axis, which canonical programs always know."""
    assert value is not None
    assert value.shape is not None
    size = value.shape[LAST]
    assert isinstance(size, int)
    return size


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """The dtype of a value, which canonical programs always know."""
    assert value is not None
    assert value.dtype is not None
    return value.dtype
