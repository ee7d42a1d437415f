"""W8A8 products on paper: TensorRT's documented integers, computed by ONNX's reference evaluator.

``q = clamp(round(x / scale), -128, 127)``, ties to the even integer (TensorRT's ``IQuantizeLayer``; ONNX's
``QuantizeLinear``), summed in int32, then ``y = sum * (scale * weight_scale[n])``. What a kernel may do otherwise, and
what would be a fault, is an :class:`Arithmetic` of its own, so that its distance can be measured.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from glm_export.errors import InputError
from glm_export.spec.weight_formats import PACKED

DOMAIN, OPERATOR = "glm_export.on_paper", "IntegerMatMul"
INT32 = 2**31 - 1
Floats = NDArray[Any]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How a product in 8 bits is computed; by default as TensorRT and ONNX document it.

    ``ties``: a value halfway between two integers goes to the ``even`` one, or ``away`` from zero. ``low``, ``high``:
    where integers saturate. ``reciprocal``: the input is multiplied by ``1 / scale``, not divided. ``division``: the
    dtype that is done in. ``scaled_together``: the sum is multiplied by the product of both scales, not by one after
    the other. ``scaling``: the dtype of that product.
    """

    ties: str = "even"
    low: int = -128
    high: int = 127
    reciprocal: bool = False
    division: str = "float32"
    scaled_together: bool = True
    scaling: str = "float32"


DOCUMENTED = Arithmetic()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """A product's numbers: ``scale`` of its input, ``integers`` int8 ``[K, N]``, ``scales`` ``[N]``."""

    name: str
    scale: float
    integers: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize(x: Floats, scale: float, how: Arithmetic = DOCUMENTED) -> Integers:
    """Integers of a tensor, in its shape."""
    dtype = np.dtype(how.division)
    narrow, divisor = x.astype(dtype), dtype.type(scale)
    # A half overflows where the integer saturates anyway.
    with np.errstate(over="ignore"):
        quotient = narrow * (dtype.type(1) / divisor) if how.reciprocal else narrow / divisor
    wide = quotient.astype(np.float64)
    rounded = np.rint(wide) if how.ties == "even" else np.copysign(np.floor(np.abs(wide) + 0.5), wide)
    integers: Integers = np.clip(rounded, how.low, how.high).astype(np.int64)
    return integers


def product(integers: Integers, weight: StoredWeight, how: Arithmetic = DOCUMENTED) -> NDArray[np.float32]:
    """``[..., N]`` float32 of integers ``[..., K]``.

    Raises:
        InputError: a sum leaves int32, which no model's size brings about.
    """
    # float64 holds every such sum exactly, and has a fast product.
    sums = integers.astype(np.float64) @ weight.integers.astype(np.float64)
    if sums.size and np.abs(sums).max() > INT32:
        raise InputError(f"{weight.name}: sums in int32 should stay within 2^31, found {np.abs(sums).max():.0f}")
    dtype = np.dtype(how.scaling)
    scale, scales = dtype.type(weight.scale), weight.scales.astype(dtype)
    wide = sums.astype(np.float32)
    if how.scaled_together:
        together: NDArray[np.float32] = wide * (scale * scales).astype(np.float32)
        return together
    return wide * np.float32(scale) * scales.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What entered a product in one call: its float input and the integers made of it."""

    weight: StoredWeight
    x: Floats
    integers: Integers


class PaperProgram:
    """A W8A8 program whose quantized products are computed in integers, all else by ONNX's reference evaluator."""

    def __init__(self, model: Path, how: Arithmetic = DOCUMENTED) -> None:
        """Read a program.

        Args:
            model: ``model.onnx`` of a float32 program with Q/DQ on both sides of its products.
            how: the arithmetic.

        Raises:
            InputError: none of its products has both sides quantized.
        """
        graph = onnx.load(str(model))
        self.weights = {weight.name: weight for weight in _integer_products(graph)}
        if not self.weights:
            raise InputError(f"{model} has no product in 8 bits; export with --recipe int8-static, --dialect onnx")
        self.entered: list[Entered] = []
        self._evaluator = ReferenceEvaluator(graph, new_ops=[_operator(self, how)])
        self._outputs = [output.name for output in graph.graph.output]

    def run(self, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call by the program's own names; :attr:`entered` then says what entered each product."""
        self.entered.clear()
        given = {name: tensors[name] for name in self._evaluator.input_names}
        return dict(zip(self._outputs, self._evaluator.run(None, given), strict=True))


def _operator(program: PaperProgram, how: Arithmetic) -> type[OpRun]:
    class IntegerMatMul(OpRun):
        """``x [..., K]`` -> ``[..., N]``; the attribute names the weight."""

        op_domain = DOMAIN

        def _run(self, x: Floats, weight: str) -> tuple[Floats]:
            stored = program.weights[weight]
            integers = quantize(x, stored.scale, how)
            program.entered.append(Entered(weight=stored, x=x, integers=integers))
            return (product(integers, stored, how).astype(x.dtype),)

    return IntegerMatMul


def _integer_products(model: onnx.ModelProto) -> Iterator[StoredWeight]:
    """Put one node in the place of each product between Q/DQ pairs; what it was made of."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        widened, packed = (made_by.get(name) for name in [*node.input, "", ""][:2])
        if node.op_type != "MatMul" or not _is(widened, "DequantizeLinear") or not _is(packed, "DequantizeLinear"):
            continue
        assert widened is not None
        assert packed is not None
        narrowed = made_by.get(widened.input[0])
        if not _is(narrowed, "QuantizeLinear") or packed.input[0] not in constants:
            continue
        assert narrowed is not None
        arrays = (onnx.numpy_helper.to_array(constants[name]) for name in (narrowed.input[1], *packed.input[:2]))
        scale, integers, scales = arrays
        name = packed.input[0].removesuffix(f".{PACKED}")
        node.op_type, node.domain = OPERATOR, DOMAIN
        del node.input[1:]
        node.input[0] = narrowed.input[0]
        node.attribute.append(onnx.helper.make_attribute("weight", name))
        yield StoredWeight(name=name, scale=float(scale), integers=integers, scales=scales)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in list(reversed(graph.node)):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not read & set(node.output):
            graph.node.remove(node)
            read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}


def _is(node: onnx.NodeProto | None, operator: str) -> bool:
    return node is not None and node.op_type == operator
