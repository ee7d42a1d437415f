"""Products with weights in a format whose operator is ONNX Runtime's own.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from glm_export.graphs.queries import product_weight
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult
from glm_export.graphs.rules.qdq.matmul import InputNumbers, divided
from glm_export.spec.signature import INPUT_IDS
from glm_export.spec.weight_formats import PROMPT, PROMPT_TOKENS, WeightFormat, WeightFormats


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductInputs:
    """What a product reads: ``x`` ``[..., K]``, the weight's stored tensors, a bias ``[N]`` where one follows.

    ``columns``: K. ``rows``: N.
    """

    x: ir.Value
    stored: Sequence[ir.Value]
    bias: ir.Value | None
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class StoredProduct:
    """The operator that multiplies with weights of one format, and what makes its node: it returns ``[..., N]``."""

    operator: str
    emit: Callable[[Any, ProductInputs, Emitter], ir.Value]


@dataclass(frozen=True, slots=True)
class QuantizedMatMul:
    """A product with a float weight becomes its format's own operator, its bias taken in.

    ``MatMul(x, W[K, N]) -> Add(bias[N])`` becomes ``Operator(x, stored tensors, bias)``; with two formats,
    ``If(many tokens)`` the one, else the other. ``products``: the operators, by the type of the format.
    """

    formats: Mapping[str, WeightFormats]
    dtype: str
    numbers: InputNumbers
    products: Mapping[type[WeightFormat], StoredProduct]
    name: str = "weights"

    def matches(self, node: ir.Node) -> MatchResult:
        """A product with a weight the recipe names."""
        if node.op_type != "MatMul":
            return NOT_MINE
        weight = node.inputs[1]
        if weight is None or weight.name is None or weight.name not in self.formats:
            return NOT_MINE
        return NOT_MINE if self.formats[weight.name].decode.explicit else MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[..., N]``, with the bias where one follows."""
        x, name, columns, rows = product_weight(node)
        x = divided(x, name, self.numbers, emit, self.dtype)
        formats, bias = self.formats[name], _bias_of(node)

        def product(name: str, form: WeightFormat, into: Emitter) -> ir.Value:
            stored = [emit.weight(spec) for spec in form.stored_tensors(name, rows, columns, self.dtype)]
            inputs = ProductInputs(x=x, stored=stored, bias=bias[0] if bias else None, columns=columns, rows=rows)
            return self.products[type(form)].emit(form, inputs, into)

        if formats.prefill is None:
            result = product(name, formats.decode, emit)
        else:
            prompt, step = emit.branch("prompt"), emit.branch("step")
            branches: dict[str, Any] = {
                "then_branch": prompt.graph(product(name + PROMPT, formats.prefill, prompt)),
                "else_branch": step.graph(product(name, formats.decode, step)),
            }
            result = emit.op("If", self._many_tokens(emit), **branches)
        if bias:
            emit.replaced.append((bias[1], result))
        return [result]

    def _many_tokens(self, emit: Emitter) -> ir.Value:
        """Whether the call has more than PROMPT_TOKENS tokens, over all rows; once per program."""
        if ("many",) not in emit.shared:
            tokens = emit.op("Size", emit.inputs[INPUT_IDS])
            emit.shared["many",] = emit.op("Greater", tokens, emit.ints(PROMPT_TOKENS))
        return emit.shared["many",]


def _bias_of(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The bias added to a product and nothing else, and the sum."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    others = [value for value in readers[0].inputs if value is not node.outputs[0]]
    if len(others) != 1 or others[0] is None or not others[0].is_initializer() or len(others[0].shape or ()) != 1:
        return None
    return others[0], readers[0].outputs[0]
