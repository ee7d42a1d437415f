"""What became of a program in its engine: layers, their precision, and which products really compute in INT8.

An engine that can be loaded is asked through TensorRT's inspector. Where there is no GPU the builder's own log says
the same (seen in TensorRT-RTX 1.7, whose products are layers of any kind that carry an ONNX product in their metadata).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PRODUCT = re.compile(r"^(?P<product>.*?MatMul)(?:/MatMul(?:_\d+)?)?$")
"""A product, and the product of its Q/DQ form, which bears its name and a number."""
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: ", re.MULTILINE)
TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?Datatype: ([A-Za-z0-9]+)")
PROFILE = re.compile(r"\[profile (\d+)\]|_myl(\d+)_\d+$")
SPELLINGS = {
    "half": "float16", "fp16": "float16", "float": "float32", "fp32": "float32", "bfloat16": "bfloat16",
    "bf16": "bfloat16", "int8": "int8", "int4": "int4", "fp8": "float8", "fp4": "float4",
}  # fmt: skip
"""How the builder's log and the inspector write dtypes -> ours; float8 and float4 of any kind are one here."""
ACTIVATIONS = {"float16", "float32", "bfloat16", "int8", "float8"}
BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "float8": 8, "int4": 4, "float4": 4}
NARROW = {"int4", "float4", "int8", "float8"}
EIGHT_BITS = {"int8", "float8"}
POINTWISE = {"kgen"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensor:
    """What a layer reads: dtype, and how many numbers (1 for each dim that is open)."""

    dtype: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer of an engine: its kind, what it reads, and the ONNX nodes it was made of."""

    name: str
    kind: str
    profile: int
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    onnx: tuple[str, ...]

    @property
    def products(self) -> tuple[str, ...]:
        """ONNX products it has a part in."""
        found = (PRODUCT.match(name) for name in self.onnx)
        return tuple(dict.fromkeys(match["product"] for match in found if match))

    @property
    def weight(self) -> LayerTensor | None:
        """The largest constant that is more than one number; None where the layer has none."""
        many = (constant for constant in self.constants if constant.count > 1)
        return max(many, key=lambda constant: constant.count, default=None)

    @property
    def precision(self) -> str:
        """What a product multiplies: ``int8`` is both sides, ``int8 weights`` are made float on the way."""
        fed = [tensor.dtype for tensor in self.inputs if tensor.dtype in ACTIVATIONS]
        weight = self.weight
        if weight is None:
            return fed[0] if fed else "unknown"
        if weight.dtype not in NARROW or weight.dtype in fed:
            return weight.dtype
        return f"{weight.dtype} weights"


def products_of(layers: Sequence[EngineLayer], profile: int) -> dict[str, EngineLayer]:
    """The layer that computes each ONNX product: of those with a part in it, the one with the largest constant.

    The others scale, add or round what it puts out.
    """
    found: dict[str, EngineLayer] = {}
    for layer in layers:
        for product in layer.products if layer.profile == profile else ():
            if product not in found or _rank(layer) > _rank(found[product]):
                found[product] = layer
    return found


def _rank(layer: EngineLayer) -> tuple[int, bool]:
    weight = layer.weight
    return weight.count if weight is not None else 0, layer.kind not in POINTWISE


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """An engine's layers, counted. ``source``: ``inspector`` or ``build log``.

    ``products``: by profile, how many compute in each precision. ``weights``: by profile, bytes of constants in each
    dtype. ``not_integer``: products that the program quantizes on both sides, and that compute in float after all.
    ``made_float``: products whose weight the program keeps in integers, and the engine in float.
    """

    source: str
    layers: int
    kinds: dict[str, int]
    products: dict[str, dict[str, int]]
    weights: dict[str, dict[str, int]]
    not_integer: tuple[str, ...]
    made_float: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """What a program says of its products, named as :class:`EngineLayer` names them.

    ``both``: its input and weight are quantized, so it ought to compute in 8 bits. ``weights``: its weight is kept in
    integers.
    """

    both: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


NOTHING_PROMISED = Promises()


def summarize(
    layers: Sequence[EngineLayer], source: str, profiles: Sequence[str], promised: Promises = NOTHING_PROMISED
) -> LayerSummary:
    """Count layers.

    Args:
        layers: of all profiles.
        source: where they were read.
        profiles: names, in the engine's order.
        promised: what the program says of its products.
    """
    computed = {name: products_of(layers, index) for index, name in enumerate(profiles)}
    return LayerSummary(
        source=source, layers=len(layers), kinds=dict(Counter(layer.kind for layer in layers).most_common()),
        products={
            name: dict(Counter(layer.precision for layer in found.values()).most_common())
            for name, found in computed.items()
        },
        weights={name: _weight_bytes(layers, index) for index, name in enumerate(profiles)},
        not_integer=tuple(
            f"{product} ({name})"
            for name, found in computed.items()
            for product in promised.both
            if product not in found or found[product].precision not in EIGHT_BITS
        ),
        made_float=tuple(
            f"{product} ({name})"
            for name, found in computed.items()
            for product in promised.weights
            if product in found and _is_float(found[product].weight)
        ),
    )  # fmt: skip


def _is_float(weight: LayerTensor | None) -> bool:
    """Whether a weight lies in the engine as floats; one that is made float in every call is no constant there."""
    return weight is not None and weight.dtype not in NARROW


def _weight_bytes(layers: Sequence[EngineLayer], profile: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for layer in layers:
        for constant in layer.constants if layer.profile == profile else ():
            if constant.count > 1 and constant.dtype in BITS:
                found[constant.dtype] += constant.count * BITS[constant.dtype] // 8
    return dict(found.most_common())


def layers_of_log(text: str) -> list[EngineLayer]:
    """Layers from the builder's message that lists them, one a line."""
    layers = []
    for line in text.splitlines():
        start = LINE.match(line)
        if start is None:
            continue
        fed, _, rest = line[start.end() :].partition("Constants: ")
        constants, _, _ = rest.partition("Outputs: ")
        metadata = line.partition("Metadata: ")[2]
        layers.append(
            EngineLayer(
                name=start["name"], kind=start["kind"], profile=_profile(start["name"]), inputs=_tensors(fed),
                constants=_tensors(constants), onnx=tuple(ONNX_LAYER.findall(metadata)),
            )
        )  # fmt: skip
    return layers


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(dtype=_dtype(dtype), count=math.prod(max(1, int(dim)) for dim in dims.split(",") if dim))
        for dims, dtype in TENSOR.findall(text)
    )


def _dtype(text: str) -> str:
    """Ours for one of TensorRT's names; of ``Row major linear FP16 format`` the word that is one."""
    return next((SPELLINGS[word] for word in text.lower().split() if word in SPELLINGS), text.lower())


def _profile(name: str) -> int:
    found = PROFILE.search(name)
    return int(found[1] or found[2]) if found else 0


def layers_of_inspector(text: str) -> list[EngineLayer]:
    """Layers from the inspector's JSON (``LayerInformationFormat.JSON``, detailed profiling verbosity)."""
    found = json.loads(text)
    return [_inspected(layer) for layer in found.get("Layers", []) if isinstance(layer, dict)]


def _inspected(layer: dict[str, Any]) -> EngineLayer:
    name = str(layer.get("Name", ""))
    constants = [_tensor(tensor) for tensor in layer.get("Constants", [])]
    # Weights that a kernel holds by itself are no tensors there.
    weights = layer.get("Weights")
    if isinstance(weights, dict) and "Type" in weights:
        constants.append(LayerTensor(dtype=_dtype(str(weights["Type"])), count=int(weights.get("Count", 1))))
    return EngineLayer(
        name=name, kind=str(layer.get("LayerType", "")), profile=_profile(name),
        inputs=tuple(_tensor(tensor) for tensor in layer.get("Inputs", [])), constants=tuple(constants),
        onnx=tuple(ONNX_LAYER.findall(str(layer.get("Metadata", "")))),
    )  # fmt: skip


def _tensor(tensor: dict[str, Any]) -> LayerTensor:
    """``Datatype`` in version 11, the end of ``Format/Datatype`` before."""
    text = str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "")
    return LayerTensor(dtype=_dtype(text), count=math.prod(max(1, dim) for dim in tensor.get("Dimensions", [])))
