"""Faults that exporters and converters make, planted one at a time in one place of a program.

Each says in which slice it must be found, and a part of the names of the nodes that may be blamed. ``layers.1`` of the
embedded model unless the fault is one of the whole model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from glm_export.artifacts.program import OnnxProgram, load_program
from tests.helpers.recorded import recorded_again

Graph = onnx.GraphProto


@dataclass
class Planting:
    """A program's graph, and the folder its weights are in."""

    graph: Graph
    folder: Path

    def node(self, name: str) -> onnx.NodeProto:
        (found,) = (node for node in self.graph.node if node.name == name)
        return found

    def insert(self, before: str, operator: str, inputs: list[str], **attributes: object) -> str:
        """A node in front of another; the name of its output. Protobuf moves the others: ask for them again."""
        index = next(i for i, node in enumerate(self.graph.node) if node.name == before)
        name = f"planted/{operator}_{index}"
        self.graph.node.insert(index, onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"planted_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str) -> np.ndarray:
        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name == name)
        return numpy_helper.to_array(tensor, base_dir=str(self.folder)).copy()

    def set_weight(self, name: str, array: np.ndarray) -> None:
        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.set_weight(name, change(self.weight(name)))

    def attribute(self, node: str, name: str, value: float) -> None:
        made = self.node(node)
        kept = [attribute for attribute in made.attribute if attribute.name != name]
        del made.attribute[:]
        made.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


@dataclass(frozen=True)
class Fault:
    """``node``: one of these must begin the blamed node's name. ``case``: where it shows first."""

    slice: str
    nodes: tuple[str, ...]
    plant: Callable[[Planting], None]


ROTARY, OTHER_ROTARY = "layers.1.attention/RotaryEmbedding", "layers.1.attention/RotaryEmbedding_1"
ATTENTION, QKV = "layers.1.attention/Attention", "layers.1.attention.qkv/"


def plant(program: OnnxProgram, fault: Fault | Callable[[Planting], None], folder: Path) -> OnnxProgram:
    """A copy of the program with one fault."""
    shutil.copytree(program.folder, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    (fault.plant if isinstance(fault, Fault) else fault)(Planting(model.graph, folder))
    onnx.save(model, str(folder / "model.onnx"))
    recorded_again(folder)
    return load_program(folder)


def _tables(change: Callable[[np.ndarray, str], np.ndarray]) -> Callable[[Planting], None]:
    """Other rotary tables for one layer's queries."""

    def planted(given: Planting) -> None:
        rotary = given.node(ROTARY)
        for place, name in ((1, "cos"), (2, "sin")):
            rotary.input[place] = given.constant(change(given.weight(name), name).astype(np.float32))

    return planted


def angles(table: np.ndarray, name: str, base: float, scale: float) -> np.ndarray:
    """A table of cosines or sines, of that many positions and pairs."""
    positions, pairs = table.shape
    angle = np.outer(np.arange(positions) / scale, base ** (-np.arange(pairs) / pairs))
    return (np.cos if name == "cos" else np.sin)(angle)


def _group_order(given: Planting) -> None:
    """Queries 0 2 4 | 1 3 5 in place of 0 1 2 | 3 4 5: head j reads keys j % K, as some builders have it."""
    size = given.weight("layers.1.attention.dense.weight").shape[0]
    heads = np.arange(size).reshape(6, -1)[[0, 2, 4, 1, 3, 5]].reshape(-1)
    moved = given.insert(ATTENTION, "Gather", [given.node(ATTENTION).input[0], given.constant(heads)], axis=2)
    given.node(ATTENTION).input[0] = moved


def _missing_bias(given: Planting) -> None:
    add = given.node("layers.1.attention.qkv/Add")
    for node in given.graph.node:
        for place, name in enumerate(node.input):
            if name == add.output[0]:
                node.input[place] = add.input[0]
    given.graph.node.remove(add)


def _position(given: Planting) -> None:
    one, zero = given.constant(np.array(1)), given.constant(np.array(0))
    before = given.insert(ROTARY, "Sub", ["position_ids", one])
    given.node(ROTARY).input[3] = given.insert(ROTARY, "Max", [before, zero])


def _mask(given: Planting) -> None:
    next(node for node in given.graph.node if node.op_type == "LessOrEqual").op_type = "Less"


def see_padding(given: Planting) -> None:
    """The mask is compared with -1 instead of 0: every token counts as real."""
    (equal,) = (node for node in given.graph.node if node.op_type == "Equal")
    equal.input[1] = given.constant(np.array(-1))


def _gate_up(given: Planting) -> None:
    split = given.node("layers.1.mlp.gate_up/Split")
    split.output[0], split.output[1] = split.output[1], split.output[0]


def _stale_cache(given: Planting) -> None:
    given.node(ATTENTION).input[4] = "past_key_values.0.key"


def _neighbour(given: Planting) -> None:
    """Rows of a batch read each other's keys."""
    past, end = given.node(ATTENTION).input[4], np.iinfo(np.int64).min
    backwards = [given.constant(np.array([number])) for number in (-1, end, 0, -1)]
    moved = given.insert(ATTENTION, "Slice", [past, *backwards])
    given.node(ATTENTION).input[4] = moved


def _swapped_layers(given: Planting) -> None:
    for tensor in given.graph.initializer:
        if tensor.name.startswith("layers.1."):
            other = tensor.name.replace("layers.1.", "layers.2.", 1)
            one, two = given.weight(tensor.name), given.weight(other)
            given.set_weight(tensor.name, two)
            given.set_weight(other, one)


def _residual(given: Planting) -> None:
    given.node("layers.1/Add").input[0] = "layers.1.attention_norm/RMSNormalization"


def _exchanged(given: Planting) -> None:
    node = given.node(ATTENTION)
    node.input[1], node.input[2] = node.input[2], node.input[1]


def _activation(given: Planting) -> None:
    given.node("layers.1.mlp/Sigmoid").op_type = "HardSigmoid"


def _shorter_rotation(given: Planting) -> None:
    """Half as many channels are rotated as should be."""
    rotary = given.node(ROTARY)
    rotated = next(attribute.i for attribute in rotary.attribute if attribute.name == "rotary_embedding_dim")
    given.attribute(ROTARY, "rotary_embedding_dim", rotated // 2)
    for place, name in ((1, "cos"), (2, "sin")):
        rotary.input[place] = given.constant(given.weight(name)[:, : rotated // 4])


def _tied_head(given: Planting) -> None:
    given.set_weight("head.weight", given.weight("embedding.weight").T)


def _truncated(given: Planting) -> None:
    def cut(weight: np.ndarray) -> np.ndarray:
        weight[:, -weight.shape[1] // 8 :] = 0
        return weight

    given.change("head.weight", cut)


def _adapter(given: Planting) -> None:
    """What LoRA had added to the queries' product is not there."""
    random = np.random.default_rng(0)

    def without(weight: np.ndarray) -> np.ndarray:
        low = random.standard_normal((weight.shape[0], 4)) @ random.standard_normal((4, weight.shape[1]))
        return (weight - 0.01 * low).astype(weight.dtype)

    given.change("layers.1.attention.qkv.weight", without)


def _one_channel(weight: np.ndarray) -> np.ndarray:
    weight[:, 17] *= 1.05
    return weight


def _weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Planting], None]:
    return lambda given: given.change(name, change)


FAULTS = {
    "half-split rotary": Fault("layers.1", (ROTARY,), lambda given: given.attribute(ROTARY, "interleaved", 0)),
    "rotary base": Fault("layers.1", (ROTARY,), _tables(lambda table, name: angles(table, name, 500.0, 1))),
    "rotary ratio": Fault("layers.1", (ROTARY,), _tables(lambda table, name: angles(table, name, 10000.0, 2))),
    "YaRN factor": Fault("layers.1", (ROTARY,), _tables(lambda table, _: table * 0.95)),
    "tables rounded to float16": Fault("layers.1", (ROTARY,), _tables(lambda table, _: table.astype(np.float16))),
    "too few channels rotated": Fault("layers.1", (ROTARY,), _shorter_rotation),
    "position off by one": Fault("layers.1", (ROTARY,), _position),
    "group order": Fault("layers.1", ("planted/Gather", ATTENTION), _group_order),
    "mask off by one": Fault("layers.0", ("mask/",), _mask),
    "padding is seen": Fault("layers.0", ("mask/",), see_padding),
    "attention scale": Fault("layers.1", (ATTENTION,), lambda given: given.attribute(ATTENTION, "scale", 0.2)),
    "keys and values exchanged": Fault("layers.1", (ATTENTION,), _exchanged),
    "stale cache": Fault("layers.1", (ATTENTION,), _stale_cache),
    "cache row of a neighbour": Fault("layers.1", (ATTENTION, "planted/Slice"), _neighbour),
    "norm eps": Fault(
        "layers.1", ("layers.1.mlp_norm/",),
        lambda given: given.attribute("layers.1.mlp_norm/RMSNormalization", "epsilon", 1e-3),
    ),
    "norm weight left out": Fault(
        "layers.1", ("layers.1.attention_norm/",), _weight("layers.1.attention_norm.weight", np.ones_like)
    ),
    "missing bias": Fault("layers.1", (QKV,), _missing_bias),
    "transposed weight": Fault(
        "layers.1", ("layers.1.attention.dense/",), _weight("layers.1.attention.dense.weight", np.transpose)
    ),
    "adapter left out": Fault("layers.1", (QKV,), _adapter),
    "one channel": Fault("layers.1", ("layers.1.mlp.down/",), _weight("layers.1.mlp.down.weight", _one_channel)),
    "swapped gate and up": Fault("layers.1", ("layers.1.mlp/", "layers.1.mlp.gate_up/"), _gate_up),
    "another activation": Fault("layers.1", ("layers.1.mlp/Sigmoid",), _activation),
    "residual of the norm": Fault("layers.1", ("layers.1/Add",), _residual),
    "swapped layers": Fault("layers.1", ("layers.1.attention_norm/",), _swapped_layers),
    "tied head": Fault("head", ("head/",), _tied_head),
    "truncated vocabulary": Fault("head", ("head/",), _truncated),
    "shifted embedding": Fault(
        "embedding", ("embedding/",), _weight("embedding.weight", lambda weight: np.roll(weight, 1, axis=0))
    ),
}  # fmt: skip
"""Of the embedded model's program in dialect ``onnx``."""
