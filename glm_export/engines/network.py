"""An ONNX program as TensorRT's parser reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_export.artifacts.program import OnnxProgram
from glm_export.engines.vendor import TensorRT
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.graphs import dialects
from glm_export.graphs.dialect import Dialect


def dialect_for(tensorrt: TensorRT) -> Dialect:
    """The best dialect a version can read: one that needs a call it has, before one that needs none."""
    readable = [dialect for dialect in dialects.every() if _reads(tensorrt, dialect)]
    return max(readable, key=lambda dialect: dialect.can.tensorrt_needs is not None)


def _reads(tensorrt: TensorRT, dialect: Dialect) -> bool:
    needs = dialect.can.tensorrt_needs
    return dialect.can.tensorrt and (needs is None or tensorrt.find(needs) is not None)


def require_dialect(program: OnnxProgram, tensorrt: TensorRT) -> None:
    """See that a program is written in what this version reads.

    Raises:
        InputError: it is not; the dialect to export is named.
    """
    if not _reads(tensorrt, dialects.load(program.dialect)):
        raise InputError(
            f"{program.folder} is of dialect {program.dialect}, which {tensorrt.name} {tensorrt.version} cannot read; "
            f"export with --dialect {dialect_for(tensorrt).name}"
        )


class Network:
    """A parsed program. ``strong`` typing takes every dtype from the program; without it TensorRT chooses.

    Owns builder and parser: the parser keeps the weights, so it must outlive the building.
    """

    def __init__(self, tensorrt: TensorRT, model: Path, *, strong: bool = True) -> None:
        """Parse.

        Args:
            tensorrt: the runtime.
            model: ``model.onnx``; its weights are mapped, not read.
            strong: where the version knows it. Implicit INT8 needs a network without.

        Raises:
            InputError: the parser refuses a node, which is named with the reason.
            EnvironmentMissingError: the builder needs a GPU and there is none.
        """
        if not tensorrt.rtx:
            tensorrt.require_driver(f"building with {tensorrt.name}")
        self.tensorrt = tensorrt
        trt = tensorrt.module
        tensorrt.log.clear()
        builder = trt.Builder(tensorrt.logger)
        flags = 0
        for name in ("EXPLICIT_BATCH", *(("STRONGLY_TYPED",) if strong else ())):
            flag = tensorrt.find(f"NetworkDefinitionCreationFlag.{name}")
            flags |= 1 << int(flag) if flag is not None else 0
        network = builder.create_network(flags)
        if network is None:
            raise EnvironmentMissingError(f"{tensorrt.name} {tensorrt.version} made no network: {tensorrt.log.reason}")
        parser = trt.OnnxParser(network, tensorrt.logger)
        if not parser.parse_from_file(str(model)):
            raise InputError(f"{tensorrt.name} {tensorrt.version} cannot read {model}: {_refusals(parser)}")
        self.builder, self.network, self.parser = builder, network, parser

    def counts(self) -> Counter[str]:
        """How often each kind of layer appears, e.g. ``KV_CACHE_UPDATE``."""
        return Counter(layer.type.name for layer in self._every())

    def layers(self, kind: str, interface: str) -> list[Any]:
        """Layers of a kind in their own class, e.g. ``ROTARY_EMBEDDING`` as ``IRotaryEmbeddingLayer``."""
        own = self.tensorrt.find(interface)
        found = [layer for layer in self._every() if layer.type.name == kind]
        for layer in found:
            # The bindings hand out the base class.
            layer.__class__ = own
        return found

    def _every(self) -> Iterator[Any]:
        return (self.network.get_layer(index) for index in range(self.network.num_layers))

    def allow_decomposition(self) -> None:
        """Where no fused kernel takes an attention's dtype or head size, several kernels may."""
        for layer in self.layers("ATTENTION_INPUT", "IAttentionInputLayer"):
            layer.attention.decomposable = True

    def parts(self) -> tuple[Any, Any, Any]:
        """Builder, network and parser, as Polygraphy passes them on."""
        return self.builder, self.network, self.parser


SOURCE_PLACE = re.compile(r"\S*/\S+\.(?:cpp|h):\d+ ?")
"""Path and line of a C++ file in a parser's message."""
NO_DRIVER = "cudaError 35"
"""What TensorRT-RTX adds to every reason on a machine without a GPU."""


def _refusals(parser: Any) -> str:
    """Node, operator and reason of each refusal; one is often the consequence of another."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(dict.fromkeys(_refusal(error) for error in errors)) or "it gave no reason"


def _refusal(error: Any) -> str:
    # Where in TensorRT's own source says nothing to who reads it, and takes the place of what does.
    lines = [line for line in error.desc().splitlines() if NO_DRIVER not in line]
    reason = SOURCE_PLACE.sub("", " ".join(" ".join(lines).split()))
    # TensorRT 8.6 tells the node's index only.
    name = error.node_name() if hasattr(error, "node_name") else ""
    if not name:
        return f"node {error.node()}: {reason}" if error.node() >= 0 else reason
    return f"node {name!r} ({error.node_operator()}): {reason}"
