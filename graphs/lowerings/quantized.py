"""Products with weights in the form a recipe gives them.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from glm_export.calibration.recipe import BlockWeights, ChannelWeights, WeightForm
from glm_export.config import GlmConfig
from glm_export.graphs.dialect import Dialect
from glm_export.graphs.rule import MICROSOFT, Emitter
from glm_export.signature import TensorSpec

BLOCK_PRODUCT, CHANNEL_PRODUCT = "MatMulNBits", "DynamicQuantizeMatMul"
PRODUCT = {BlockWeights: BLOCK_PRODUCT, ChannelWeights: CHANNEL_PRODUCT}
PACKED, SCALES, ZERO_POINTS = "packed", "scales", "zero_points"


def stored_parts(name: str, rows: int, columns: int, form: WeightForm, dtype: str) -> list[TensorSpec]:
    """The tensors that stand for a weight ``[N, K]``, in file order; scales have the program's dtype."""
    if isinstance(form, ChannelWeights):
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype="int8", dims=(columns, rows)),
            TensorSpec(name=f"{name}.{SCALES}", dtype="float32", dims=(rows,)),
        ]
    blocks = -(-columns // form.block)
    parts = [
        TensorSpec(name=f"{name}.{PACKED}", dtype="uint8", dims=(rows, blocks, form.block * form.bits // 8)),
        TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=(rows, blocks)),
    ]
    if not form.symmetric:
        width = -(-blocks * form.bits // 8)
        parts.append(TensorSpec(name=f"{name}.{ZERO_POINTS}", dtype="uint8", dims=(rows, width)))
    return parts


def quantized_dialect(dialect: Dialect, forms: Mapping[str, WeightForm]) -> Dialect:
    """The dialect with the products that weights in these forms need, each once."""
    products = Counter(f"{MICROSOFT}.{PRODUCT[type(form)]}" for form in forms.values())

    def expected_counts(config: GlmConfig) -> Counter[str]:
        counts = dialect.expected_counts(config)
        return Counter({**counts, **products, "MatMul": counts["MatMul"] - len(forms)})

    return replace(dialect, allowed_ops=dialect.allowed_ops | products.keys(), expected_counts=expected_counts)


@dataclass(frozen=True, slots=True)
class MatMulToForm:
    """A product with a float weight becomes one with its stored form, its bias taken in.

    ``MatMul(x, W[K, N]) -> Add(bias[N])`` becomes ``MatMulNBits(x, packed[N, C, …], scales[N, C], bias)`` or
    ``DynamicQuantizeMatMul(x, packed[K, N], scales[N], bias)``.
    """

    forms: Mapping[str, WeightForm]
    dtype: str
    name: str = "weights"

    def matches(self, node: ir.Node) -> str | None:
        """A product with a weight the recipe names."""
        if node.op_type != "MatMul":
            return ""
        weight = node.inputs[1]
        return None if weight is not None and weight.name in self.forms else ""

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[..., N]``, with the bias where one follows."""
        x, weight = node.inputs
        assert weight is not None
        assert weight.name is not None
        assert weight.shape is not None
        columns, rows = (int(size) for size in weight.shape)  # type: ignore[arg-type]
        form = self.forms[weight.name]
        stored = [emit.weight(spec) for spec in stored_parts(weight.name, rows, columns, form, self.dtype)]
        bias = _bias_of(node)
        if isinstance(form, ChannelWeights):
            product = emit.op(CHANNEL_PRODUCT, x, *stored, None, bias and bias[0], domain=MICROSOFT)
        else:
            zero_points = stored[2] if len(stored) > 2 else None
            product = emit.op(
                BLOCK_PRODUCT, x, *stored[:2], zero_points, None, bias and bias[0], domain=MICROSOFT, K=columns, N=rows,
                bits=form.bits, block_size=form.block, accuracy_level=form.accuracy_level,
            )  # fmt: skip
        if bias:
            emit.replaced.append((bias[1], product))
        return [product]


def _bias_of(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The bias added to a product and nothing else, and the sum."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    others = [value for value in readers[0].inputs if value is not node.outputs[0]]
    if len(others) != 1 or others[0] is None or not others[0].is_initializer() or len(others[0].shape or ()) != 1:
        return None
    return others[0], readers[0].outputs[0]
