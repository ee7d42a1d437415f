"""The first node of a slice that computes something else than the reference does.

A node is to blame where what it reads agrees and what it puts out does not. What never agrees in a layer that is right,
because the reference has no such number (a scale, a part of a fused rotation), is no sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from glm_export.graphs.slices import TELL_SIZES, Slice, read_names
from glm_export.proof.layers.intermediates import Intermediates
from glm_export.proof.layers.program import Values
from glm_export.spec.signature import INPUT_IDS, past_names, present_names

Key = tuple[object, ...]
NO_VALUE = -1
"""In place of an index, of what agrees with a mask or a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A slice's values beside the reference's. ``agrees``: name -> index of the reference's value, or None."""

    part: Slice
    values: Values
    intermediates: Intermediates
    agrees: Mapping[str, int | None]
    keys: Mapping[str, Key]

    def benign(self) -> dict[Key, int | None]:
        """By place in the structure: which of the reference's values stands there; None where it has none."""
        return {self.keys[name]: index for name, index in self.agrees.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blamed:
    """The node, as an index into the graph's, its output that differs, and what it should be.

    ``expected``: index of the reference's value; None where no layer that is right tells. ``region``: nodes between
    what agrees and what must agree again, in order; the node is the first of them.
    """

    node: int
    output: str
    expected: int | None
    region: tuple[int, ...]


def compare_values(graph: onnx.GraphProto, part: Slice, values: Values, intermediates: Intermediates) -> Explained:
    """Find a slice's values among the reference's.

    Args:
        graph: the whole one.
        part: the slice.
        values: what its nodes put out, by name; others are given, and right.
        intermediates: of the same layer and call.
    """
    stream = _stream(graph, part)
    read_by_stream = {
        name for index in part.nodes if set(graph.node[index].output) & stream for name in read_names(graph.node[index])
    }
    agrees: dict[str, int | None] = {}
    made = [name for index in part.nodes for name in graph.node[index].output if name in values]
    for name, value in ((name, values[name]) for name in made):
        if name in stream and value.dtype.kind == "f":
            agrees[name] = intermediates.explain(value)
        elif value.dtype.kind == "f":
            found = intermediates.explain(value)
            known = found is not None or intermediates.is_mask(value) or intermediates.weight(value) is not None
            agrees[name] = NO_VALUE if found is None and known else found
        elif value.dtype == bool and name in read_by_stream:
            agrees[name] = NO_VALUE if intermediates.is_mask(value) else None
    return Explained(
        part=part,
        values=values,
        intermediates=intermediates,
        agrees=agrees,
        keys=structure_keys(graph, part),
    )


def blame(graph: onnx.GraphProto, found: Explained, targets: Sequence[str], right: Explained | None) -> Blamed | None:
    """The first node whose inputs agree and whose output does not, among those that made the targets.

    Args:
        graph: the whole one.
        found: the slice in question.
        targets: outputs of it that are too far off.
        right: a slice of the same kind that is right; None where there is none.

    Returns:
        None where every value agrees.
    """
    usual = right.benign() if right is not None else {}

    def is_right(name: str) -> bool:
        if name not in found.agrees:
            return True
        place = usual.get(found.keys[name], NO_VALUE)
        if place is None:
            # Never agrees where the layer is right either.
            return True
        index = found.agrees[name]
        if index is None or place == NO_VALUE:
            return index is not None
        # Another value of the reference is no better than none: a norm's before its weight.
        return index == place or found.intermediates.matches(found.values[name], place)

    ancestors = _ancestors(graph, found.part, targets)
    differs = _without_harmless(graph, found, {n for n in found.agrees if not is_right(n)}, set(targets))
    wrong = [i for i in found.part.nodes if i in ancestors and differs.intersection(graph.node[i].output)]
    first = next((i for i in wrong if not differs.intersection(read_names(graph.node[i]))), None)
    if first is None:
        return None
    output = next(name for name in graph.node[first].output if name in differs)
    expected = usual.get(found.keys[output])
    end = next((i for i in wrong if i > first and usual.get(found.keys[_main(graph, i)]) is not None), None)
    region = tuple(i for i in wrong if first <= i and (end is None or i < end))
    known = expected if expected is not None and expected >= 0 else None
    return Blamed(node=first, output=output, expected=known, region=region)


def _without_harmless(graph: onnx.GraphProto, found: Explained, differs: set[str], targets: set[str]) -> set[str]:
    """Without values from which only what is right was made: the reference computes that by another way."""
    left, part = set(differs), found.part
    for index in reversed(part.nodes):
        for name in left.intersection(graph.node[index].output) - targets:
            readers = [graph.node[i] for i in part.nodes if name in read_names(graph.node[i])]
            right = {name for name, place in found.agrees.items() if place is not None} - left
            made = [set(reader.output) for reader in readers]
            if made and all(right & outputs and not left & outputs for outputs in made):
                left.discard(name)
    return left


def _main(graph: onnx.GraphProto, index: int) -> str:
    return str(graph.node[index].output[0])


def _stream(graph: onnx.GraphProto, part: Slice) -> frozenset[str]:
    """Floats that come of the slice's input or of the token ids: what must be found among the reference's values."""
    reached = {crossing.value for crossing in part.inputs} or {INPUT_IDS}
    begun = set(reached)
    for index in part.nodes:
        node = graph.node[index]
        if node.op_type not in TELL_SIZES and reached.intersection(read_names(node)):
            reached.update(name for name in node.output if name)
    return frozenset(reached - begun)


def _ancestors(graph: onnx.GraphProto, part: Slice, targets: Sequence[str]) -> set[int]:
    wanted, found = set(targets), set()
    for index in reversed(part.nodes):
        if wanted.intersection(graph.node[index].output):
            found.add(index)
            wanted.update(read_names(graph.node[index]))
    return found


def structure_keys(graph: onnx.GraphProto, part: Slice) -> dict[str, Key]:
    """Each value's place in its slice: the operators between it and the slice's inputs. Layers alike have the same."""
    keys: dict[str, Key] = {crossing.value: (crossing.meaning.value,) for crossing in part.inputs}
    if part.layer is not None:
        keys |= {name: ("past", place) for place, name in enumerate(past_names(part.layer))}
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for index in part.nodes:
        node = graph.node[index]
        read = tuple(
            keys.get(name, ("weight", *constants[name]) if name in constants else (name,)) for name in node.input
        )
        # Hashed at once: written out, a key grows with every node.
        inside = hash((node.domain, node.op_type, read))
        keys |= {name: (inside, place) for place, name in enumerate(node.output) if name}
    return keys


def named_outputs(graph: onnx.GraphProto, part: Slice) -> list[str]:
    """Values of a slice that somebody reads: a runtime need not compute the others."""
    read = {name for node in graph.node for name in read_names(node)} | {value.name for value in graph.output}
    presents = set(present_names(part.layer)) if part.layer is not None else set()
    return [name for i in part.nodes for name in graph.node[i].output if name and (name in read or name in presents)]
