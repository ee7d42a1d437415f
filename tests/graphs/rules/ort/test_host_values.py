"""Nothing counted in the host's memory meets numbers on a GPU: each such meeting is a copy in every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from glm_export import api
from glm_export.exporter.export import export
from tests.helpers.golden_data import Golden

COUNTS = {"Shape", "Size"}
TAKES_THEM = {"GroupQueryAttention": {6}, "Reshape": {1}, "Expand": {1}, "Slice": {1, 2, 3, 4}, "Unsqueeze": {1}}
"""Inputs that ONNX Runtime's CUDA kernels want in the host's memory (OrtMemTypeCPUInput)."""


def copies(path: Path) -> list[str]:
    """Nodes on the GPU that read what was computed on the host.

    As ONNX Runtime places them: what comes of counts alone stays with them.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    host: set[str] = set()
    found = []
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        computed = [name for name in node.input if name and name not in stored]
        if node.op_type in COUNTS or (computed and all(name in host for name in computed)):
            host.update(node.output)
            continue
        wanted = TAKES_THEM.get(node.op_type, set())
        found += [f"{node.op_type}({name})" for at, name in enumerate(node.input) if name in host and at not in wanted]
    return found


@pytest.mark.parametrize("logits", ["last", "recent"])
@pytest.mark.parametrize("family", ["chatglm2", "glm4_hf", "glm4_remote"])
def test_fused_programs_copy_nothing(family: str, logits: str, tmp_path: Path) -> None:
    """Experts aside, who fill a table of zeros by its shape; where ONNX Runtime does that, only a GPU shows."""
    checkpoint = api.open_checkpoint(Golden(family).folder)
    assert copies(export(checkpoint, tmp_path / "ort", dialect="ort", logits=logits).model_path) == []


def test_control_a_count_beside_a_sum_is_found(tmp_path: Path, save: Callable[[str, Path], Path]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[B, S] ids, int64[B, T] mask) => (int64[N] y) {
        axis = Constant <value_ints=[1]> ()
        real = ReduceSum <keepdims=0> (mask, axis)
        queries = Shape <start=1> (ids)
        y = Min (real, queries)
    }"""
    assert copies(save(text, tmp_path / "model.onnx")) == ["Min(queries)"]


@pytest.fixture
def save() -> Callable[[str, Path], Path]:
    def saved(text: str, path: Path) -> Path:
        onnx.save(onnx.parser.parse_model(text), str(path))
        return path

    return saved
