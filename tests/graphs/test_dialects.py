"""Every family in every lowered dialect: the same numbers, only allowed operators, and counts that can fail."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.exporter.export import program_graph
from glm_export.exporter.options import resolve_options
from glm_export.exporter.plan import plan_export
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.graphs import dialects
from glm_export.graphs.invariants import InvariantError, check_invariants
from glm_export.graphs.lower import lower
from glm_export.proof.compare import TOLERANCES
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import BATCH, LOGITS, PAST, decoder_signature, past_names
from tests.helpers.golden_data import BOUND, CAUSAL, PREFIX, Golden, difference

LOWERED = [name for name in dialects.names() if name != "onnx"]


@pytest.fixture(scope="module", params=[(dialect, name) for dialect in LOWERED for name in (*CAUSAL, *PREFIX)], ids=str)
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxProgram, Golden]:
    """A golden checkpoint exported to a dialect."""
    dialect, name = request.param
    folder = tmp_path_factory.mktemp("lowered") / name
    return api.export(Golden(name).folder, folder, dialect=dialect), Golden(name)


def test_numbers_operators_and_opset(lowered: tuple[OnnxProgram, Golden]) -> None:
    """Prefill, chunks, decode, padded batches and greedy tokens as PyTorch; nothing the dialect does not allow."""
    program, golden = lowered
    report = api.check(program, golden.folder)
    assert report.passed
    assert report.greedy_equal == report.greedy_total
    dialect = dialects.load(program.dialect)
    model = onnx.load(str(program.model_path), load_external_data=False)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {dialect.opset}
    assert model.ir_version == dialect.ir_version
    onnx.checker.check_model(str(program.model_path), full_check=True)
    counts = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)
    assert set(counts) <= dialect.allowed_ops
    if dialect.name == "portable":
        assert not {"Attention", "RotaryEmbedding", "RMSNormalization", "Gelu"} & set(counts)
    if dialect.name == "ort":
        assert counts["com.microsoft.GroupQueryAttention"] == program.config.num_layers
        assert not counts["Attention"]


def test_golden_greedy_ids(lowered: tuple[OnnxProgram, Golden]) -> None:
    program, golden = lowered
    with api.load_session(program) as session:
        for case in golden.facts["greedy"]:
            stopping = Stopping(max_new_tokens=len(case["new_ids"]))
            (row,) = generate_ids(session, [case["prompt_ids"]], stopping=stopping)
            assert row.ids == case["new_ids"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["glm4_hf", "chatglm"])
@pytest.mark.parametrize("dialect", LOWERED)
def test_half_precision(dialect: str, name: str, dtype: str, tmp_path: Path) -> None:
    source = Golden(name).folder
    program = api.export(source, tmp_path / "out", dialect=dialect, dtype=dtype)
    report = api.check(program, source)
    assert report.passed
    # Its rounding shows, and is that of its dtype: a float32 program in disguise would need far less.
    assert TOLERANCES["float32"] < report.parity.required_tolerance < TOLERANCES[dtype]
    assert {spec.dtype for spec in program.signature.outputs} == {dtype}


def test_reference_evaluator_reads_portable(tmp_path: Path) -> None:
    """An evaluator of the standard that shares no code with ONNX Runtime."""
    golden = Golden("chatglm2")
    program = api.export(golden.folder, tmp_path / "out", dialect="portable")
    evaluator = ReferenceEvaluator(onnx.load(str(program.model_path)))
    ids = golden["chunk.input_ids"]
    feeds: dict[str, np.ndarray] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    for layer in range(program.config.num_layers):
        for key in past_names(layer):
            feeds[key] = np.zeros(program.signature.input(key).shape(**{BATCH: 1, PAST: 0}), np.float32)
    logits = np.asarray(evaluator.run([LOGITS], feeds)[0])
    assert difference(logits[:, :8], golden["chunk.logits_first"]) <= BOUND


# -- a lowering that misses something is refused -------------------------------------------------------


def canonical(name: str) -> tuple[ir.Model, GlmConfig]:
    checkpoint = open_checkpoint(Golden(name).folder)
    plan = plan_export(checkpoint, Path.cwd(), "float32")
    target = resolve_options(checkpoint.config, dialect="onnx", dtype="float32", logits=None, max_length=None)
    return program_graph(checkpoint.config, target, plan.stored), checkpoint.config


def test_a_rewrite_that_does_not_fire_is_named_with_its_reason() -> None:
    model, config = canonical("chatglm2")
    attention = next(node for node in model.graph if node.op_type == "Attention")
    attention.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    with pytest.raises(InvariantError, match=r"rule attention should fire 2 times, fired 1.*the mask must say it"):
        lower(model, dialects.load("portable"), config, decoder_signature(config, dtype="float32", logits="all"))


@pytest.mark.parametrize(
    ("name", "left_out", "message"),
    [
        ("portable", "rms_norm", "RMSNormalization"),
        ("ort", "skip_norm", r"expects \d RMSNormalization nodes|expects \d com.*SkipSimplified.* nodes, found 0"),
        ("ort", "attention", "expects 0 Attention nodes, found 2"),
        ("tensorrt", "attention", "attention_mask is no input of the target, but .* still reads it"),
    ],
)
def test_a_rule_left_out_is_refused(name: str, left_out: str, message: str) -> None:
    """What it would have rewritten stays, which the dialect or its signature does not allow."""
    model, config = canonical("chatglm2")
    dialect = dialects.load(name)
    without = replace(dialect, rules=lambda: tuple(rule for rule in dialect.rules() if rule.name != left_out))
    cache = dialect.cache(config)
    signature = decoder_signature(config, dtype="float32", logits="all", cache=cache, max_length=64)

    def made() -> None:
        lower(model, without, config, signature)
        check_invariants(model, dialect, config, signature)

    with pytest.raises(InvariantError, match=message):
        made()


@pytest.mark.parametrize("name", LOWERED)
def test_a_planted_operator_is_refused(name: str) -> None:
    model, config = canonical("chatglm2")
    dialect = dialects.load(name)
    signature = decoder_signature(config, dtype="float32", logits="all", cache=dialect.cache(config), max_length=64)
    lower(model, dialect, config, signature)
    check_invariants(model, dialect, config, signature)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    model.graph.insert_after(product, ir.node("Selu", [product.outputs[0]], name="planted"))
    with pytest.raises(InvariantError, match="does not allow the operators Selu"):
        check_invariants(model, dialect, config, signature)


def test_a_rule_that_computes_something_else_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: heads regrouped in the wrong order give other numbers, and ``check`` sees them."""
    from glm_export.graphs.rules.opset17.attention import AttentionToPrimitives

    def scrambled(self: AttentionToPrimitives, x: ir.Value, heads: int, head_dim: int, emit: object) -> ir.Value:
        cut = emit.op("Reshape", x, emit.ints(0, 0, head_dim, heads))
        return emit.op("Transpose", cut, perm=[0, 3, 1, 2])

    monkeypatch.setattr(AttentionToPrimitives, "_heads", scrambled)
    source = Golden("chatglm2").folder
    assert not api.check(api.export(source, tmp_path / "out", dialect="portable"), source).passed
