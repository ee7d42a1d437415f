"""A traced graph of a few layers, continued to as many as the model has: its last layer, repeated.

The exporter works on every layer as long as on the first, however alike they are. Here a layer is read off as what
changes between the last two that were traced: the values that are its own, and the running numbers in names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from glm_export.graphs.canonicalize import NAME_SCOPES

TAUGHT_BY = 3
"""Layers of the repeated kind that must be traced: the first makes what all share, two more show the step."""
_NUMBERS = re.compile(r"(\d+)")
Steps = dict[str, list[int]]
"""By a name without its numbers: how far each number goes from one layer to the next."""


class UnevenLayersError(Exception):
    """The last two layers that were traced differ in more than a step that can be taken again."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the graph. ``own``: inputs and initializers that it alone reads, then what it makes, in order."""

    index: int
    nodes: list[ir.Node]
    own: list[ir.Value]


def stamp_layers(model: ir.Model, layers: int, *, module: str) -> None:
    """Continue the exporter's graph, in place, to what it would have been with more layers.

    Nodes, values, inputs, outputs and initializers of the last layer are repeated, and running numbers go on: in
    canonical form the result equals, byte for byte, that of tracing every layer.

    Args:
        model: as ``torch.onnx.export(..., optimize=False)`` made it; its last :data:`TAUGHT_BY` layers are of one kind.
        layers: how many there shall be; more than it has.
        module: the module whose children the layers are, as ``decoder.layers``.

    Raises:
        UnevenLayersError: what changes between the last two layers is no step that can be taken again; the graph is as
            it was.
    """
    before, last, tail = _last_layers(model, module)
    steps = _compared(before, last)
    _require_closed(before, tail)
    extra = range(1, layers - last.index)
    made = [[_advanced(value, steps, count) for value in last.own] for count in extra]
    counted = [value for node in tail for value in node.outputs if _parts(value)[0] in steps]
    behind = {value: _advanced(value, steps, len(extra)) for value in counted}
    names = [behind.get(value, value.name) for value in _values(model)] + [name for names in made for name in names]
    if len(set(names)) != len(names):
        raise UnevenLayersError("two values would have one name")
    for value, name in behind.items():
        value.name = name
    _continue(model, before, last, tail, made)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _last_layers(model: ir.Model, module: str) -> tuple[_Layer, _Layer, list[ir.Node]]:
    """The last two layers, and the nodes behind them."""
    pattern = re.compile(rf"{re.escape(module)}\.(\d+)")
    runs: list[tuple[int | None, list[ir.Node]]] = []
    for node in model.graph:
        index = _layer_of(node, pattern)
        if not runs or runs[-1][0] != index:
            runs.append((index, []))
        runs[-1][1].append(node)
    order, count = [index for index, _ in runs], len(runs) - 2
    if count < TAUGHT_BY or order != [None, *range(count), None]:
        raise UnevenLayersError(f"layers should follow one another, and their nodes stand in the order {order}")
    (_, nodes_b), (_, nodes_c), (_, tail) = runs[-3:]
    return _layer(model, count - 2, nodes_b), _layer(model, count - 1, nodes_c), tail


def _layer_of(node: ir.Node, pattern: re.Pattern[str]) -> int | None:
    found = map(pattern.fullmatch, _scopes(node))
    return next((int(match[1]) for match in found if match), None)


def _scopes(node: ir.Node) -> list[str]:
    """Modules, outermost first, and last the traced operation."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    return scopes


def _layer(model: ir.Model, index: int, nodes: list[ir.Node]) -> _Layer:
    here = set(nodes)
    given = [*model.graph.inputs, *model.graph.initializers.values()]
    own = [value for value in given if value.uses() and all(use.node in here for use in value.uses())]
    return _Layer(index, nodes, own + [value for node in nodes for value in node.outputs])


def _require_closed(before: _Layer, tail: list[ir.Node]) -> None:
    """What follows the layers reads of them the last alone."""
    inner = set(before.own)
    for node in tail:
        if inner.intersection(value for value in node.inputs if value is not None):
            raise UnevenLayersError(f"{node.name} reads layer {before.index}, which is not the last")


def _compared(before: _Layer, last: _Layer) -> Steps:
    """Hold two layers to one another.

    Returns:
        The steps of their names.
    """
    place_b = {value: place for place, value in enumerate(before.own)}
    place_c = {value: place for place, value in enumerate(last.own)}
    if (len(before.nodes), len(place_b)) != (len(last.nodes), len(place_c)):
        raise UnevenLayersError(f"layers {before.index} and {last.index} have other numbers of nodes or values")
    for b, c in zip(before.nodes, last.nodes, strict=True):
        if _kind(b, before.index) != _kind(c, last.index):
            raise UnevenLayersError(f"{c.name} is another operation than {b.name}")
        for read_b, read_c in zip(b.inputs, c.inputs, strict=True):
            if not _corresponds(read_b, read_c, place_b, place_c):
                raise UnevenLayersError(f"{c.name} reads other values than {b.name}")
    steps: Steps = {}
    for value_b, value_c in zip(before.own, last.own, strict=True):
        if _form(value_b) != _form(value_c):
            raise UnevenLayersError(f"{value_c.name} is of another form than {value_b.name}")
        (name_b, numbers_b), (name_c, numbers_c) = _parts(value_b), _parts(value_c)
        step = [c - b for b, c in zip(numbers_b, numbers_c, strict=False)]
        if name_b != name_c or steps.setdefault(name_c, step) != step:
            raise UnevenLayersError(f"the number in {value_c.name} runs otherwise than in {value_b.name}")
    return steps


def _kind(node: ir.Node, layer: int) -> tuple[object, ...]:
    attributes = sorted((name, _plain(attribute)) for name, attribute in node.attributes.items())
    modules = [scope.replace(f".{layer}", ".#", 1) for scope in _scopes(node)[:-1]]
    return node.domain, node.op_type, node.version, len(node.inputs), len(node.outputs), attributes, modules


def _plain(attribute: ir.Attr) -> str:
    """All that an attribute says."""
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {list(tensor.shape)} {tensor.tobytes().hex()}"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        raise UnevenLayersError(f"attribute {attribute.name} is a graph, and those are not compared")
    return f"{attribute.type} {attribute.value!r}"


def _corresponds(
    b: ir.Value | None, c: ir.Value | None, place_b: Mapping[ir.Value, int], place_c: Mapping[ir.Value, int]
) -> bool:
    """A layer reads what is its own, what the layer before it made, or what all share."""
    if b is None or c is None:
        return b is c
    if c in place_c:
        return place_b.get(b) == place_c[c]
    if c not in place_b:
        return b is c
    return b not in place_b and _maker(b) == _maker(c)


def _maker(value: ir.Value) -> tuple[str, int | None] | None:
    node = value.producer()
    return (node.op_type, value.index()) if node is not None else None


def _form(value: ir.Value) -> tuple[object, ...]:
    # Each layer's past has a length of its own name until the signature's takes its place: sizes alone are compared.
    sizes = None if value.shape is None else [dim if isinstance(dim, int) else None for dim in value.shape]
    return value.type, sizes, value.is_graph_input(), value.is_graph_output(), value.is_initializer()


def _parts(value: ir.Value) -> tuple[str, list[int]]:
    """A name without its numbers, and those."""
    parts = _NUMBERS.split(value.name or "")
    return "#".join(parts[::2]), list(map(int, parts[1::2]))


def _advanced(value: ir.Value, steps: Steps, count: int) -> str:
    """The name that many layers on."""
    parts = _NUMBERS.split(value.name or "")
    step = steps["#".join(parts[::2])]
    parts[1::2] = [str(int(number) + count * by) for number, by in zip(parts[1::2], step, strict=True)]
    return "".join(parts)


def _continue(
    model: ir.Model, before: _Layer, last: _Layer, tail: list[ir.Node], names: Sequence[Sequence[str]]
) -> None:
    """Put copies of the last layer behind it, and let what followed it read the last of them."""
    copies, nodes = [last.own], []
    for index, named in enumerate(names, start=last.index + 1):
        own = [_copy(value, name) for value, name in zip(last.own, named, strict=True)]
        reads: dict[ir.Value | None, ir.Value] = dict(zip(before.own, copies[-1], strict=True))
        reads |= zip(last.own, own, strict=True)
        for node in last.nodes:
            scopes = [scope.replace(f".{last.index}", f".{index}", 1) for scope in _scopes(node)]
            nodes.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    [reads.get(value, value) for value in node.inputs],
                    node.attributes.values(),
                    outputs=[reads[value] for value in node.outputs],
                    version=node.version,
                    metadata_props={NAME_SCOPES: repr(scopes)},
                )
            )
        copies.append(own)
    model.graph.insert_after(last.nodes[-1], nodes)
    latest = dict(zip(last.own, copies[-1], strict=True))
    for node in tail:
        for place, value in enumerate(node.inputs):
            if value in latest:
                node.replace_input_with(place, latest[value])
    _register(model.graph, last, copies[1:])


def _copy(value: ir.Value, name: str) -> ir.Value:
    shape = None if value.shape is None else ir.Shape(list(value.shape))
    return ir.Value(name=name, shape=shape, type=value.type)


def _register(graph: ir.Graph, last: _Layer, copies: Sequence[Sequence[ir.Value]]) -> None:
    """Put the copies' inputs, outputs and initializers behind those of the last layer."""

    def with_copies(values: Iterable[ir.Value]) -> list[ir.Value]:
        found = list(values)
        places = [place for place, value in enumerate(last.own) if value in set(found)]
        behind = max((found.index(last.own[place]) for place in places), default=-1) + 1
        return [*found[:behind], *(copy[place] for copy in copies for place in places), *found[behind:]]

    for border in (graph.inputs, graph.outputs):
        values = with_copies(border)
        border.clear()
        border.extend(values)
    initializers = with_copies(graph.initializers.values())
    graph.initializers.clear()
    for value in initializers:
        graph.initializers.add(value)
