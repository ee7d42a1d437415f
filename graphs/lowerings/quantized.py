"""Products with weights in the form a recipe gives them.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from glm_export.calibration.recipe import (
    EMBEDDING,
    PROMPT_TOKENS,
    BlockWeights,
    ChannelWeights,
    Forms,
    QdqWeights,
    WeightForm,
)  # fmt: skip
from glm_export.graphs.lowerings.explicit import InputNumbers, MatMulToExplicit, divided
from glm_export.graphs.lowerings.reading import product_weight
from glm_export.graphs.lowerings.stored_weights import BLOCK_PRODUCT, CHANNEL_PRODUCT, LOOKUP, PROMPT, stored_parts
from glm_export.graphs.rule import MICROSOFT, CountedRule, Emitter
from glm_export.signature import INPUT_IDS


@dataclass(frozen=True, slots=True)
class GatherToForm:
    """``Gather(table[V, H], ids)`` becomes ``GatherBlockQuantized(packed[V, …], ids, scales[V, H / block])``."""

    forms: Mapping[str, Forms]
    dtype: str
    name: str = "embedding"

    def matches(self, node: ir.Node) -> str | None:
        """The lookup of tokens, where the recipe names its table."""
        table = node.inputs[0] if node.op_type == "Gather" else None
        return None if table is not None and table.name == EMBEDDING and EMBEDDING in self.forms else ""

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return rows ``[B, S, H]``."""
        table, ids = node.inputs
        assert table is not None
        assert table.shape is not None
        form = self.forms[EMBEDDING].step
        assert isinstance(form, BlockWeights)
        rows, columns = (int(size) for size in table.shape)  # type: ignore[arg-type]
        packed, scales, *zero_points = (
            emit.weight(spec) for spec in stored_parts(EMBEDDING, rows, columns, form, self.dtype)
        )
        return [
            emit.op(
                LOOKUP, packed, ids, scales, *zero_points, domain=MICROSOFT, bits=form.bits, block_size=form.block,
                gather_axis=0, quantize_axis=1,
            )
        ]  # fmt: skip


def quantizing_rules(forms: Mapping[str, Forms], dtype: str, numbers: InputNumbers | None = None) -> list[CountedRule]:
    """The rules that put weights into these forms, and how often each must fire."""
    numbers = numbers or InputNumbers()
    explicit = sum(isinstance(both.step, QdqWeights) for both in forms.values())
    lookups = int(EMBEDDING in forms)
    rules: list[CountedRule] = [
        (MatMulToForm(forms, dtype, numbers), len(forms) - lookups - explicit),
        (MatMulToExplicit(forms, dtype, numbers), explicit),
        (GatherToForm(forms, dtype), lookups),
    ]
    return rules if forms else []


@dataclass(frozen=True, slots=True)
class MatMulToForm:
    """A product with a float weight becomes one with its stored form, its bias taken in.

    ``MatMul(x, W[K, N]) -> Add(bias[N])`` becomes ``MatMulNBits(x, packed[N, C, …], scales[N, C], bias)`` or
    ``DynamicQuantizeMatMul(x, packed[K, N], scales[N], bias)``; with two forms, ``If(many tokens)`` the one, else the
    other.
    """

    forms: Mapping[str, Forms]
    dtype: str
    numbers: InputNumbers
    name: str = "weights"

    def matches(self, node: ir.Node) -> str | None:
        """A product with a weight the recipe names."""
        if node.op_type != "MatMul":
            return ""
        weight = node.inputs[1]
        if weight is None or weight.name is None or weight.name not in self.forms:
            return ""
        return "" if isinstance(self.forms[weight.name].step, QdqWeights) else None

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[..., N]``, with the bias where one follows."""
        x, name, columns, rows = product_weight(node)
        x = divided(x, name, self.numbers, emit, self.dtype)
        forms, bias = self.forms[name], _bias_of(node)

        def product(name: str, form: WeightForm, into: Emitter) -> ir.Value:
            stored = [emit.weight(spec) for spec in stored_parts(name, rows, columns, form, self.dtype)]
            if isinstance(form, ChannelWeights):
                return into.op(CHANNEL_PRODUCT, x, *stored, None, bias and bias[0], domain=MICROSOFT)
            assert isinstance(form, BlockWeights)
            zero_points = stored[2] if len(stored) > 2 else None
            return into.op(
                BLOCK_PRODUCT, x, *stored[:2], zero_points, None, bias and bias[0], domain=MICROSOFT, K=columns,
                N=rows, bits=form.bits, block_size=form.block, accuracy_level=form.accuracy_level,
            )  # fmt: skip

        if forms.prompt is None:
            result = product(name, forms.step, emit)
        else:
            prompt, step = emit.branch("prompt"), emit.branch("step")
            branches: dict[str, Any] = {
                "then_branch": prompt.graph(product(name + PROMPT, forms.prompt, prompt)),
                "else_branch": step.graph(product(name, forms.step, step)),
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
