"""A decoder's graph cut where its residual stream is one value: a slice a layer, one before them and one behind.

Nothing here reads names of nodes. A place to cut is a node that every path from the token ids to the logits leads
through; a layer ends at the last sum of two such paths before the next layer reads its past. So programs of every
dialect are cut alike, and so are those that others exported under the standard names of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import onnx

from glm_export.errors import GlmExportError
from glm_export.spec.signature import INPUT_IDS, LOGITS, past_names, present_names

TELL_SIZES = frozenset({"Shape", "Size"})
"""What they make of the token ids tells nothing of which tokens they are."""
SUMS = frozenset({"Add", "Sum"})
SUMS_WITH_NORM = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
SUM_OUTPUT = 3
"""Of a sum with its norm: output 0 is the norm, this one the sum."""
SUMS_A_LAYER = 2


class UncutError(GlmExportError):
    """The graph is no decoder this module can cut; the message says where it is another."""


class Meaning(Enum):
    """What a value between two slices is: the residual stream, or what the next norm makes of it."""

    HIDDEN = "hidden"
    NORMED = "normed"


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value ``[B, S, H]`` that one slice computes and the next one reads."""

    value: str
    meaning: Meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of the graph. ``layer``: which; None for what stands before the first and behind the last.

    ``nodes``: indices into the graph's, in its order, with those that only tell masks and positions.
    """

    name: str
    layer: int | None
    inputs: tuple[Crossing, ...]
    outputs: tuple[Crossing, ...]
    presents: tuple[str, ...]
    nodes: tuple[int, ...]


def read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Values a node reads, those of its branches and bodies as well."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inside = {name for inner in graph.node for name in inner.output}
            inside |= {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in read_names(inner) if name not in inside)


def slice_decoder(graph: onnx.GraphProto, layers: int) -> tuple[Slice, ...]:
    """Cut a decoder's graph.

    Args:
        graph: sorted, as ONNX wants it, with inputs and outputs under the standard names.
        layers: how many the model has.

    Returns:
        ``embedding``, ``layers.0`` … and ``head``.

    Raises:
        UncutError: no path leads from the ids to the logits, a layer reads no past, or two layers cannot be told apart.
    """
    return _Cutter(graph, layers).slices()


class _Cutter:
    def __init__(self, graph: onnx.GraphProto, layers: int) -> None:
        self.graph, self.layers = graph, layers
        self.reads = [tuple(read_names(node)) for node in graph.node]
        self.producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        self.stream = self._stream()
        self.cuts = self._cuts()

    def slices(self) -> tuple[Slice, ...]:
        first, ends = self._start(), self._ends()
        borders = [first, *ends]
        crossings = [self._crossings(border) for border in borders]
        slices = [self._slice("embedding", None, (), crossings[0], ())]
        for layer, (inputs, outputs) in enumerate(pairwise(crossings)):
            names = tuple(name for name in present_names(layer) if name in self.producer)
            part = self._slice(f"layers.{layer}", layer, inputs, outputs, names)
            slices.append(part)
        head = self._slice("head", None, crossings[-1], (), (LOGITS,))
        return (*slices, head)

    def _stream(self) -> frozenset[int]:
        """Nodes on a path from the token ids to the logits."""
        reached, behind = {INPUT_IDS}, set()
        for index, node in enumerate(self.graph.node):
            if node.op_type not in TELL_SIZES and reached.intersection(self.reads[index]):
                reached.update(name for name in node.output if name)
                behind.add(index)
        before, wanted = set(), {LOGITS}
        for index in reversed(range(len(self.graph.node))):
            if wanted.intersection(self.graph.node[index].output):
                before.add(index)
                wanted.update(self.reads[index])
        found = frozenset(before & behind)
        if not found:
            raise UncutError(f"{LOGITS} should be computed from {INPUT_IDS}, and no path leads there")
        return found

    def _cuts(self) -> list[int]:
        """Nodes that every path of the stream leads through, in order."""
        last_read: dict[int, int] = {}
        for index in sorted(self.stream):
            for name in self.reads[index]:
                if self.producer.get(name) in self.stream:
                    last_read[self.producer[name]] = index
        cuts, reach = [], -1
        for index in sorted(self.stream):
            if reach <= index:
                cuts.append(index)
            reach = max(reach, last_read.get(index, index))
        return cuts

    def _stream_inputs(self, index: int) -> set[str]:
        return {name for name in self.reads[index] if self.producer.get(name) in self.stream}

    def _is_sum(self, index: int) -> bool:
        operator = self.graph.node[index].op_type
        return operator in SUMS | SUMS_WITH_NORM and len(self._stream_inputs(index)) > 1

    def _anchor(self, layer: int) -> tuple[int, int]:
        """The first and the last node of the stream that reads what the layer has kept."""
        kept, found = set(past_names(layer)), []
        for index, node in enumerate(self.graph.node):
            if node.op_type in TELL_SIZES or not kept.intersection(self.reads[index]):
                continue
            if index in self.stream:
                found.append(index)
            else:
                kept.update(node.output)
        if not found:
            raise UncutError(
                f"layer {layer} should read {past_names(layer)[0]}, and nothing does on the way to {LOGITS}"
            )
        return found[0], found[-1]

    def _start(self) -> int:
        """What the first layer begins with: the first place to cut that both its norm and its sum read."""
        before = self._anchor(0)[0]
        for cut in self.cuts:
            outputs = set(self.graph.node[cut].output)
            if cut < before and sum(bool(outputs.intersection(self.reads[i])) for i in self.stream) > 1:
                return cut
        raise UncutError(
            f"the first layer's input should be one value, and no node before {past_names(0)[0]} is read twice"
        )

    def _ends(self) -> list[int]:
        sums, ends = [cut for cut in self.cuts if self._is_sum(cut)], []
        if len(sums) == SUMS_A_LAYER * self.layers:
            return sums[SUMS_A_LAYER - 1 :: SUMS_A_LAYER]
        # A sum is missing, or there are more: a layer ends before the next reads its past.
        anchors = [self._anchor(layer) for layer in range(self.layers)]
        for layer, (_, last) in enumerate(anchors):
            limit = anchors[layer + 1][0] if layer + 1 < self.layers else len(self.graph.node)
            between = [index for index in sums if last < index < limit]
            if not between:
                raise UncutError(f"layer {layer} should end in a sum that the rest is computed from; there is none")
            ends.append(between[-1])
        return ends

    def _crossings(self, cut: int) -> tuple[Crossing, ...]:
        node = self.graph.node[cut]
        read = {name for index in self.stream if index > cut for name in self.reads[index]}
        with_norm = node.op_type in SUMS_WITH_NORM
        found = []
        for place, name in enumerate(node.output):
            if name and name in read:
                normed = node.op_type in NORMS or (with_norm and place != SUM_OUTPUT)
                found.append(Crossing(name, Meaning.NORMED if normed else Meaning.HIDDEN))
        return tuple(found)

    def _slice(
        self,
        name: str,
        layer: int | None,
        inputs: Sequence[Crossing],
        outputs: Sequence[Crossing],
        presents: tuple[str, ...],
    ) -> Slice:
        given, nodes = {c.value for c in inputs}, []
        wanted = {c.value for c in outputs} | set(presents)
        values = set(wanted)
        by_value = set()
        for index in reversed(range(len(self.graph.node))):
            made = set(self.graph.node[index].output)
            if not made & wanted or made & given:
                continue
            nodes.append(index)
            wanted.update(self.reads[index])
            if made & values and self.graph.node[index].op_type not in TELL_SIZES:
                by_value.add(index)
                values.update(self.reads[index])
        nodes.reverse()
        begins = max((self.producer[name_] for name_ in given), default=-1)
        strays = [self.graph.node[i].name for i in sorted(by_value & self.stream) if i < begins]
        if strays:
            only = ", ".join(map(str, sorted(given)))
            raise UncutError(f"{name} should read the stream at {only} alone, and reads {strays[0]} as well")
        return Slice(
            name=name,
            layer=layer,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            presents=presents,
            nodes=tuple(nodes),
        )


def extract(
    model: onnx.ModelProto, part: Slice, input_types: Mapping[str, int], outputs: Sequence[str] | None = None
) -> onnx.ModelProto:
    """A slice as a model of its own; weights stay in the files they are in.

    Args:
        model: what was cut, without its external data.
        part: from :func:`slice_decoder`.
        input_types: ONNX element type of each crossing value that goes in.
        outputs: names of values to put out; None: what the slice is for.
    """
    names = [crossing.value for crossing in part.outputs] + list(part.presents) if outputs is None else list(outputs)
    return model_of(model, part.nodes, input_types, names)


def model_of(
    model: onnx.ModelProto,
    nodes: Sequence[int],
    input_types: Mapping[str, int],
    outputs: Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """Some of a model's nodes as a model: what they read of its inputs and initializers comes along.

    Args:
        model: without its external data.
        nodes: indices, in order.
        input_types: ONNX element type of values that are given and computed by none of these nodes.
        outputs: names to put out; a runtime finds their types itself.
        shapes: of values that are given; any where it is not told.
    """
    graph = model.graph
    kept = [graph.node[index] for index in nodes]
    read = {name for node in kept for name in read_names(node)}
    made = {name for node in kept for name in node.output}
    inputs = [value for value in graph.input if value.name in read and value.name not in input_types]
    given = {name: kind for name, kind in input_types.items() if name in read - made}
    inputs += [onnx.helper.make_tensor_value_info(name, kind, (shapes or {}).get(name)) for name, kind in given.items()]
    part = onnx.GraphProto(
        name=graph.name or "slice",
        node=kept,
        initializer=[tensor for tensor in graph.initializer if tensor.name in read],
        input=inputs,
        output=[onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=part
    )
