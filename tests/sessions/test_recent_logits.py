"""Programs that tell the logits of a row's last 17 tokens: those of programs that tell all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.exporter.genai_config import GENAI_CONFIG
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.onnxruntime.cuda_graph import CapturedGraph, GraphIds
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.spec.signature import RECENT_TOKENS
from tests.helpers.golden_data import Golden
from tests.sessions.conftest import prompts_for

CPU = ["CPUExecutionProvider"]
LENGTHS = (33, 17, 5)


@pytest.mark.parametrize("family", ["chatglm2", "glm4_hf", "chatglm", "glm"])
def test_logits_are_those_of_the_last_tokens(family: str, exported: Callable[..., OnnxProgram]) -> None:
    recent, whole = (OrtSession(exported(family, "ort", kind), CPU) for kind in ("recent", "all"))
    with recent, whole:
        prompts = prompts_for(recent.program, *LENGTHS)
        feeds = recent.feeds(prompts)
        found, expected = recent.prefill(feeds), whole.prefill(feeds)
        assert found.shape[1] == RECENT_TOKENS
        for row, length in enumerate(LENGTHS):
            first, kept = max(length - RECENT_TOKENS, 0), min(length, RECENT_TOKENS)
            np.testing.assert_allclose(found[row, :kept], expected[row, first:length], atol=2e-5)
        assert np.abs(found[0] - expected[0, :RECENT_TOKENS]).max() > 0.1  # the control
        np.testing.assert_array_equal(feeds.last_logits(found).argmax(-1), feeds.last_logits(expected).argmax(-1))
        assert isinstance(feeds, RightPaddedFeeds)
        # Going on: several tokens of one row, one of another, none of the third.
        following = feeds.next_tokens([(3, 4, 5), (6,), ()])
        found, expected = recent.decode(following), whole.decode(following)
        np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
        np.testing.assert_allclose(found[1, :1], expected[1, :1], atol=2e-5)


@pytest.mark.parametrize("family", ["chatglm2", "glm"])
def test_they_are_proven_like_any_other(family: str, exported: Callable[..., OnnxProgram]) -> None:
    program = exported(family, "ort", "recent")
    report = api.check(program, Golden(family).folder)
    assert report.passed
    assert any(output.output == "logits" for output in report.parity.outputs)
    # Logits of another place are found out.
    model = onnx.load(program.model_path, load_external_data=False)
    counted = [node for node in model.graph.node if node.op_type == "Constant" and _value(node) == [RECENT_TOKENS]]
    counted_too = [array for array in model.graph.initializer if _ints(array) == [RECENT_TOKENS]]
    assert len(counted) + len(counted_too) == 1
    for array in [node.attribute[0].t for node in counted] + counted_too:
        array.CopyFrom(numpy_helper.from_array(np.array([RECENT_TOKENS - 1]), array.name))
    program.model_path.rename(kept := program.model_path.with_suffix(".kept"))
    try:
        onnx.save(model, program.model_path)
        assert not api.check(program, Golden(family).folder).passed
    finally:
        kept.rename(program.model_path)


def test_a_captured_step(exported: Callable[..., OnnxProgram]) -> None:
    """Of one token a row they are that token's."""
    with OrtSession(exported("chatglm2", "ort", "recent"), CPU) as session:
        feeds = session.feeds(prompts_for(session.program, 9, 4))
        session.prefill(feeds)
        step = feeds.next_step([3, 5], session.last_position(feeds))
        expected = session.decode(step)
        session._captured = CapturedGraph(session.runtime, session.signature, GraphIds(), "cpu")
        session.prefill(feeds)
        np.testing.assert_array_equal(session.decode(step), expected)


def _value(node: onnx.NodeProto) -> list[int]:
    return _ints(node.attribute[0].t)


def _ints(array: onnx.TensorProto) -> list[int]:
    small = array.data_type == onnx.TensorProto.INT64 and array.data_location == onnx.TensorProto.DEFAULT
    return numpy_helper.to_array(array).reshape(-1).tolist() if small else []


def test_other_loaders_are_told_nothing_of_them(exported: Callable[..., OnnxProgram]) -> None:
    """They take logits to be of every token or of one: onnxruntime-genai would read past the end."""
    assert not (exported("chatglm2", "ort", "recent").folder / GENAI_CONFIG).exists()
    assert json.loads((exported("chatglm2", "ort", "all").folder / GENAI_CONFIG).read_text())


@pytest.mark.parametrize("dialect", ["onnx", "portable", "tensorrt"])
def test_dialects_without_them(dialect: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--logits recent needs --dialect ort; found dialect {dialect}"):
        api.export("demo", tmp_path / "out", dialect=dialect, logits="recent")
