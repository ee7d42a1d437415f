"""What must hold for every program before it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from glm_export.errors import GlmExportError
from glm_export.graphs.dialect import Dialect
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import Signature, TensorSpec


class InvariantError(GlmExportError):
    """A graph is not what its dialect promises: a defect of glm-export, not of the user's input."""


def check_invariants(model: ir.Model, dialect: Dialect, config: GlmConfig, signature: Signature) -> None:
    """Hold a graph to its dialect and its signature.

    Raises:
        InvariantError: a foreign operator, a count that differs, an input or output that differs, or an
            initializer nobody reads.
    """
    counts = Counter(
        node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}" for node in model.graph.all_nodes()
    )
    foreign = sorted(set(counts) - dialect.allowed_ops)
    if foreign:
        raise InvariantError(f"dialect {dialect.name} does not allow the operators {', '.join(foreign)}")
    for operator, expected in dialect.expected_counts(config).items():
        if counts[operator] != expected:
            raise InvariantError(
                f"dialect {dialect.name} expects {expected} {operator} nodes, found {counts[operator]}"
            )
    if model.opset_imports.get("") != dialect.opset:
        raise InvariantError(f"dialect {dialect.name} is opset {dialect.opset}, found {model.opset_imports.get('')}")
    require_border(model, signature)
    orphans = [
        name for name, value in model.graph.initializers.items() if not value.uses() and not value.is_graph_output()
    ]
    if orphans:
        raise InvariantError(f"initializers nobody reads: {', '.join(orphans[:5])}")


def require_border(model: ir.Model, signature: Signature) -> None:
    """See that inputs and outputs are those of a signature, in order.

    Raises:
        InvariantError: one differs.
    """
    _check_border("input", tuple(model.graph.inputs), signature.inputs)
    _check_border("output", tuple(model.graph.outputs), signature.outputs)


def _check_border(side: str, values: Sequence[ir.Value], specs: tuple[TensorSpec, ...]) -> None:
    found = [(value.name, value.dtype.name.lower() if value.dtype else None, _dims(value)) for value in values]
    expected = [(spec.name, ir.DataType[ONNX_DTYPES[spec.dtype]].name.lower(), spec.dims) for spec in specs]
    for have, want in zip(found, expected, strict=False):
        if have != want:
            raise InvariantError(f"{side} should be {want}, found {have}")
    if len(found) != len(expected):
        raise InvariantError(f"expected {len(expected)} {side}s, found {len(found)}")


def _dims(value: ir.Value) -> tuple[int | str, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
