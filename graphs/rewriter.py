"""A graph rule: which node it takes, why it does not match, and what it puts there instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import TensorSpec

Attribute = int | float | str | list[int] | ir.Graph
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
FLOAT16_RANGE = "float16_range"
"""Under which a value's or a node's ``meta`` holds its :class:`Float16Range`; it is never written to a file."""


@dataclass(frozen=True, slots=True)
class Float16Range:
    """What calibration found of an activation: ``name``, its module's, and whether its values fit float16."""

    name: str
    fits: bool


def float16_range(thing: ir.Value | ir.Node) -> Float16Range | None:
    """What is known of a value, or of a node's scores; None where nothing was measured."""
    found: Float16Range | None = thing.meta.get(FLOAT16_RANGE)
    return found


def overflowing(thing: ir.Value | ir.Node) -> str | None:
    """The activation's name, where it is known not to fit float16."""
    known = float16_range(thing)
    return None if known is None or known.fits else known.name


@dataclass(frozen=True, slots=True)
class MatchResult:
    """Whether a rule takes a node. ``reason``: of one that is the rule's kind and cannot be taken, why; else empty.

    Nodes of another kind are passed over in silence; reasons are what a rule that fired too seldom is refused with.
    """

    matched: bool
    reason: str = ""


MATCHED, NOT_MINE = MatchResult(matched=True), MatchResult(matched=False)


def refused(reason: str) -> MatchResult:
    """A node of the rule's kind that it cannot take."""
    return MatchResult(matched=False, reason=reason)


class Rule(Protocol):
    """One rewrite. Its class docstring shows the two graphs: matched, and replacement."""

    @property
    def name(self) -> str:
        """Under which its rewrites are counted."""

    def matches(self, node: ir.Node) -> MatchResult:
        """Whether the rule applies, and where it ought to and does not, why."""

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Emit the replacement; returns one value for each output of the node."""


CountedRule = tuple[Rule, int]
"""A rule and how often it must fire."""


@dataclass(slots=True)
class Emitter:
    """Makes the nodes of one replacement, named after the node they replace.

    ``shared`` lives as long as the lowering: what several replacements need is made once, before the first.
    ``weights`` are new initializers whose values the file will hold. ``inputs`` are the graph inputs of the dialect's
    signature, by name. ``replaced`` pairs values of other nodes with what takes their place. ``told`` pairs outputs of
    the program with what its caller gets in their place; nodes that read them go on reading them.
    """

    scope: str
    shared: dict[tuple[object, ...], ir.Value]
    constants: dict[tuple[object, ...], ir.Value]
    inputs: Mapping[str, ir.Value]
    replaced: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    told: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    weights: list[ir.Value] = field(default_factory=list)
    tape: Tape = field(default_factory=Tape)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Attribute) -> ir.Value:
        """A node with one output."""
        return self.many(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def many(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """A node with several outputs."""
        made = self.tape.op_multi_out(op_type, list(inputs), attributes, num_outputs=outputs, domain=domain)
        node = made[0].producer()
        assert node is not None
        node.name = f"{self.scope}/{op_type}_{len(self.tape.nodes)}"
        for index, value in enumerate(made):
            value.name = node.name if outputs == 1 else f"{node.name}.{index}"
        return made

    def again(self, node: ir.Node, *inputs: ir.Value | None) -> list[ir.Value]:
        """The same node over other inputs."""
        made = self.many(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain)
        new = made[0].producer()
        assert new is not None
        new.attributes.update(node.attributes)
        return list(made)

    def weight(self, spec: TensorSpec) -> ir.Value:
        """A new initializer, its value to be attached when the graph is whole."""
        value = ir.Value(
            name=spec.name, shape=ir.Shape(spec.dims), type=ir.TensorType(ir.DataType[ONNX_DTYPES[spec.dtype]])
        )
        self.weights.append(value)
        return value

    def branch(self, name: str) -> Emitter:
        """An emitter for a branch of a condition; it reads this graph's values and makes no initializers of its own."""
        return Emitter(scope=f"{self.scope}/{name}", shared=self.shared, constants=self.constants, inputs=self.inputs)

    def graph(self, output: ir.Value) -> ir.Graph:
        """What was emitted, as a branch with one output."""
        return ir.Graph([], [output], nodes=self.tape.nodes, name=self.scope)

    def ints(self, *values: int) -> ir.Value:
        """An int64 list, one initializer for each content."""
        return self._constant(("ints", values), np.array(values, np.int64))

    def scalar(self, value: float, dtype: ir.DataType) -> ir.Value:
        """A scalar of a floating dtype."""
        return self._constant(("scalar", value, dtype), np.array(value, dtype.numpy()))

    def array(self, name: str, values: float | np.ndarray, dtype: ir.DataType) -> ir.Value:
        """A named initializer that lies in the graph itself, not in the file of weights."""
        tensor = ir.tensor(np.asarray(values, dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor)
        self.weights.append(value)
        return value

    def _constant(self, key: tuple[object, ...], array: np.ndarray) -> ir.Value:
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        return self.constants[key]


def apply_rule(
    model: ir.Model, rule: Rule, constants: dict[tuple[object, ...], ir.Value], inputs: Mapping[str, ir.Value]
) -> tuple[int, list[str]]:
    """Rewrite every node a rule matches, in place.

    Args:
        model: the program.
        rule: the rewrite.
        constants: those made so far, by content; grows.
        inputs: the graph inputs of the dialect's signature, by name.

    Returns:
        How often it fired, and for nodes of its operator that it passed over, why.
    """
    shared: dict[tuple[object, ...], ir.Value] = {}
    fired, reasons = 0, []
    for node in list(model.graph):
        result = rule.matches(node)
        if not result.matched:
            if result.reason:
                reasons.append(f"{node.name}: {result.reason}")
            continue
        emit = Emitter(scope=node.name or rule.name, shared=shared, constants=constants, inputs=inputs)
        replacements = rule.rewrite(node, emit)
        _carry_notes(node, replacements, emit)
        replace_nodes_and_values(
            model.graph, node, [node], emit.tape.nodes, node.outputs[: len(replacements)], replacements
        )
        for weight in emit.weights:
            assert weight.name is not None
            model.graph.initializers[weight.name] = weight
        for before, after in emit.replaced:
            _take_place(before, after)
        for inner, outer in emit.told:
            _tell(model.graph, inner, outer)
        fired += 1
    _register(model.graph, constants.values())
    return fired, reasons


def _tell(graph: ir.Graph, inner: ir.Value, outer: ir.Value) -> None:
    """The caller gets another value under the same name."""
    outer.name, inner.name = inner.name, f"{inner.name}.read"
    outer.shape, outer.type = inner.shape, inner.type
    graph.outputs[graph.outputs.index(inner)] = outer


def _take_place(before: ir.Value, after: ir.Value) -> None:
    """Readers get the other value; so does the program's caller, under the same name."""
    if before.is_graph_output():
        after.name, before.name = before.name, f"{before.name}.replaced"
        after.shape, after.type = before.shape, before.type
    before.replace_all_uses_with(after, replace_graph_outputs=True)


def _register(graph: ir.Graph, constants: Iterable[ir.Value]) -> None:
    """Make initializers of constants that are read; a program that is lowered once more has some of these names."""
    for value in constants:
        assert value.name is not None
        if graph.initializers.get(value.name) is value or not value.uses():
            continue
        number = len(graph.initializers)
        while value.name in graph.initializers:
            value.name, number = f"constant_{number}", number + 1
        graph.register_initializer(value)


def _carry_notes(node: ir.Node, replacements: Sequence[ir.Value], emit: Emitter) -> None:
    """What is known of a value holds for what takes its place; what is known of a node, for all it is made of."""
    for before, after in (*zip(node.outputs, replacements, strict=False), *emit.replaced):
        if FLOAT16_RANGE in before.meta:
            after.meta[FLOAT16_RANGE] = before.meta[FLOAT16_RANGE]
    if FLOAT16_RANGE in node.meta:
        for made in emit.tape.nodes:
            made.meta[FLOAT16_RANGE] = node.meta[FLOAT16_RANGE]
