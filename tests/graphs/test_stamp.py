"""Layers stamped after those that were traced: the same bytes as tracing them all, or all of them traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from glm_export import families, modeling
from glm_export.exporter import export as exporter, trace as tracer
from glm_export.exporter.options import resolve_options
from glm_export.exporter.weight_layout import plan_weights
from glm_export.graphs.stamp import TAUGHT_BY, UnevenLayersError, stamp_layers
from glm_export.modeling import Decoder, building_in
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import decoder_signature

OPSET = 23
# A dtype and a kind of logits for each family; every pair of them occurs.
CASES = [
    ("chatglm2", "float16", "last"),
    ("chatglm3", "bfloat16", "all"),
    ("glm4_remote", "float32", "last"),
    ("glm", "float16", "all"),
    ("glm4", "bfloat16", "last"),
    ("glm4_moe", "float16", "last"),
    ("chatglm", "float32", "all"),
    ("glm_infilling", "float16", "last"),
]
DIALECTS = ("onnx", "ort", "portable")


def config_of(family: str, layers: int) -> GlmConfig:
    return replace(families.read_config(families.load(family).TINY), num_layers=layers)


def traced(how: Callable[..., ir.Model], config: GlmConfig, *layers: int, dtype: str, logits: str) -> ir.Model:
    signature = decoder_signature(config, dtype=dtype, logits=logits)
    return how(config, signature, *layers, dtype=dtype, logits=logits, opset=OPSET)


@cache
def few() -> ir.Model:
    """The first three layers of a ChatGLM2, to be cloned."""
    return traced(tracer.trace_layers, config_of("chatglm2", 5), TAUGHT_BY, dtype="float32", logits="last")


def written(raw: ir.Model, config: GlmConfig, dialect: str, dtype: str, logits: str) -> bytes:
    """``model.onnx`` of an exporter's graph, which stays as it is."""
    target = resolve_options(config, dialect=dialect, dtype=dtype, logits=logits)
    with torch.device("meta"), building_in(getattr(torch, dtype)):
        decoder = Decoder(tracer.untied(config))
    stored = tuple(plan_weights(decoder, grouped_experts=target.dialect.can.grouped_experts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", lambda *_, **__: raw.clone())
        model = exporter.program_graph(config, target, stored)
    tracer.attach_weights(model, stored, Path())
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def run_on(raw: ir.Model) -> None:
    """Let numbers behind the layers run on: a written program keeps some, of what slices the last token out."""
    *_, last = (node for node in raw.graph if node.op_type == "Attention")
    nodes = list(raw.graph)
    for node in nodes[nodes.index(last) :]:
        for value in node.outputs:
            if value.name and value.name.startswith("val_"):
                value.name += "0"


@pytest.mark.parametrize(("family", "dtype", "logits"), CASES)
def test_a_stamped_program_is_the_traced_one_to_the_byte(family: str, dtype: str, logits: str) -> None:
    few_layers = tracer.layers_to_trace(list(layers_of(config_of(family, 12))))
    # Twice behind one another; of mixtures, which take longest, once.
    config = config_of(family, few_layers + (1 if family == "glm4_moe" else 2))
    whole = traced(tracer.trace_layers, config, config.num_layers, dtype=dtype, logits=logits)
    stamped = traced(tracer.trace_layers, config, few_layers, dtype=dtype, logits=logits)
    stamp_layers(stamped, config.num_layers, module=tracer.LAYERS)
    for dialect in DIALECTS:
        if dialect == "ort" and dtype == "bfloat16":
            continue
        expected = written(whole, config, dialect, dtype, logits)
        assert written(stamped, config, dialect, dtype, logits) == expected
    # The control: one number that ran too far is seen.
    if logits == "last":
        run_on(stamped)
        assert written(stamped, config, "onnx", dtype, logits) != written(whole, config, "onnx", dtype, logits)


def layers_of(config: GlmConfig) -> nn.ModuleList:
    with torch.device("meta"):
        return Decoder(config).layers


@pytest.mark.parametrize(
    ("family", "first_layer", "expected"), [("chatglm2", None, 3), ("glm4_moe", 1, 4), ("glm4_moe", 3, 6)]
)
def test_every_kind_of_layer_is_traced(family: str, first_layer: int | None, expected: int) -> None:
    config = config_of(family, 12)
    if first_layer is not None:
        assert config.experts is not None
        config = replace(config, experts=replace(config.experts, first_layer=first_layer))
    layers = layers_of(config)
    assert tracer.layers_to_trace(list(layers)) == expected
    assert tracer.layers_to_trace(list(layers)[:expected]) == expected
    # A layer in the middle that computes otherwise: from there on, everything anew.
    odd = layers[-2]
    assert isinstance(odd, modeling.Layer)
    odd.residual_alpha = 2.0
    assert tracer.layers_to_trace(list(layers)) == len(layers)


def test_few_layers_are_traced_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, made = [], few().clone()

    def once(config: GlmConfig, _: object, layers: int, **__: Any) -> ir.Model:
        asked.append(layers)
        return made

    monkeypatch.setattr(tracer, "trace_layers", once)
    config = config_of("chatglm2", 28)
    raw = traced(tracer.trace, config, dtype="float32", logits="last")
    assert asked == [TAUGHT_BY]
    assert sum(node.op_type == "Attention" for node in raw.graph) == config.num_layers
    assert written(raw, config, "onnx", "float32", "last")


def test_layers_that_differ_where_nobody_looked_are_all_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, forward, calls = config_of("chatglm2", 4), modeling.Layer.forward, []

    def doubled_once(layer: modeling.Layer, x_BSH: Tensor, *rest: Any) -> Any:
        calls.append(layer)
        return forward(layer, x_BSH + x_BSH if len(set(map(id, calls))) == TAUGHT_BY else x_BSH, *rest)

    monkeypatch.setattr(modeling.Layer, "forward", doubled_once)
    raw = traced(tracer.trace, config, dtype="float32", logits="last")
    (said,) = [record for record in caplog.records if record.name == tracer.__name__]
    assert said.levelname == "WARNING"
    assert "tracing all 4 layers" in said.getMessage()
    assert sum(node.op_type == "Attention" for node in raw.graph) == config.num_layers


def another_attribute(raw: ir.Model) -> None:
    norm = [node for node in raw.graph if node.op_type == "RMSNormalization"][-2]
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.25)


def another_operator(raw: ir.Model) -> None:
    [node for node in raw.graph if node.op_type == "Sigmoid"][-1].op_type = "Tanh"


def an_earlier_value(raw: ir.Model) -> None:
    norms = [node for node in raw.graph if node.op_type == "RMSNormalization"]
    norms[-2].replace_input_with(0, norms[0].inputs[0])


def another_of_its_own(raw: ir.Model) -> None:
    norms = [node for node in raw.graph if node.op_type == "RMSNormalization"]
    norms[-2].replace_input_with(0, norms[-3].outputs[0])


def another_number(raw: ir.Model) -> None:
    [node for node in raw.graph if node.op_type == "Sigmoid"][-1].outputs[0].name = "val_1000"


def a_reader_of_the_layer_before(raw: ir.Model) -> None:
    norms = [node for node in raw.graph if node.op_type == "RMSNormalization"]
    norms[-1].replace_input_with(0, norms[-4].outputs[0])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (another_attribute, "is another operation than"),
        (another_operator, "is another operation than"),
        (an_earlier_value, "reads other values than"),
        (another_of_its_own, "reads other values than"),
        (another_number, "runs otherwise than"),
        (a_reader_of_the_layer_before, "which is not the last"),
    ],
)
def test_what_is_no_step_is_refused_and_left_alone(damage: Callable[[ir.Model], None], said: str) -> None:
    raw = few().clone()
    damage(raw)
    before = [(node.op_type, [value.name for value in node.outputs]) for node in raw.graph]
    with pytest.raises(UnevenLayersError, match=said):
        stamp_layers(raw, 5, module=tracer.LAYERS)
    assert [(node.op_type, [value.name for value in node.outputs]) for node in raw.graph] == before


def test_a_module_that_has_no_layers_is_refused() -> None:
    with pytest.raises(UnevenLayersError, match="should follow one another"):
        stamp_layers(few().clone(), 5, module="decoder.blocks")
