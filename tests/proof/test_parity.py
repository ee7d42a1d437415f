"""Every golden case, through PyTorch and through the exported program; and controls that must fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.modeling import label_loss
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession, load_reference
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import BATCH, LOGITS, PAST, past_names, present_names
from glm_export.spec.weight_map import WeightRule
from tests.helpers.golden_data import BOUND, CAUSAL, Golden, difference

RUNTIMES = ("torch", "onnxruntime")


@pytest.fixture(params=RUNTIMES)
def session(
    request: pytest.FixtureRequest, golden: Golden, exported: Callable[[str], OnnxProgram]
) -> Iterator[Session]:
    """The golden checkpoint in each runtime."""
    made: Session
    made = (
        TorchSession(open_checkpoint(golden.folder)) if request.param == "torch" else OrtSession(exported(golden.name))
    )
    with made:
        yield made


def feeds(ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None, past: int = 0) -> Feeds:
    """Golden arrays as feeds; without a mask or positions, everything is real and counts on from the past."""
    return Feeds(
        input_ids=ids,
        attention_mask=np.ones((ids.shape[0], past + ids.shape[1]), np.int64) if mask is None else mask,
        position_ids=np.broadcast_to(past + np.arange(ids.shape[1]), ids.shape) if positions is None else positions,
    )


def test_prefill(session: Session, golden: Golden) -> None:
    ids, mask, positions = (golden[f"prefill.{name}"] for name in ("input_ids", "attention_mask", "position_ids"))
    logits = session.prefill(feeds(ids, mask, positions))
    assert difference(logits, golden["prefill.logits"]) <= BOUND
    assert np.abs(golden["prefill.logits"]).max() > 5  # the bound is meant for logits of this scale


def test_decode(session: Session, golden: Golden) -> None:
    prompt = golden["prefill.input_ids"]
    session.prefill(feeds(prompt))
    found = []
    for step in range(golden["decode.input_ids"].shape[1]):
        past = prompt.shape[1] + step
        token, position = (golden[f"decode.{name}"][:, step : step + 1] for name in ("input_ids", "position_ids"))
        found.append(session.decode(feeds(token, positions=position, past=past)))
    assert difference(np.concatenate(found, axis=1), golden["decode.logits"]) <= BOUND


def test_left_padded_batch_and_its_decode(session: Session, golden: Golden) -> None:
    mask = golden["batch.attention_mask"]
    logits = session.prefill(feeds(golden["batch.input_ids"], mask, golden["batch.position_ids"]))
    assert np.isfinite(logits).all()
    assert difference(logits, golden["batch.logits"], mask) <= BOUND
    found = []
    for step in range(golden["batch_decode.input_ids"].shape[1]):
        mask = np.concatenate([mask, np.ones((mask.shape[0], 1), np.int64)], axis=1)
        token, position = (golden[f"batch_decode.{name}"][:, step : step + 1] for name in ("input_ids", "position_ids"))
        found.append(session.decode(feeds(token, mask, position)))
    assert difference(np.concatenate(found, axis=1), golden["batch_decode.logits"]) <= BOUND


def test_chunk_on_top_of_a_past(session: Session, golden: Golden) -> None:
    ids, split = golden["chunk.input_ids"], golden["chunk.logits_first"].shape[1]
    first = session.prefill(feeds(ids[:, :split]))
    second = session.decode(feeds(ids[:, split:], past=split))
    assert difference(first, golden["chunk.logits_first"]) <= BOUND
    assert difference(second, golden["chunk.logits_second"]) <= BOUND


def test_long_prompt(session: Session, golden: Golden) -> None:
    logits = session.prefill(feeds(golden["long.input_ids"]))
    assert difference(logits[:, -8:], golden["long.logits_last8"]) <= BOUND


def test_greedy_ids(session: Session, golden: Golden) -> None:
    for case in golden.facts["greedy"]:
        stopping = Stopping(max_new_tokens=len(case["new_ids"]))
        (row,) = generate_ids(session, [case["prompt_ids"]], stopping=stopping)
        assert row.ids == case["new_ids"]


def test_cache(golden: Golden, exported: Callable[[str], OnnxProgram]) -> None:
    """The program's cache holds the official keys and values."""
    program = exported(golden.name)
    given = feeds(golden["prefill.input_ids"])
    empty = {
        name: np.zeros(program.signature.input(name).shape(**{BATCH: 1, PAST: 0}), np.float32)
        for layer in range(program.config.num_layers)
        for name in past_names(layer)
    }
    with OrtSession(program) as session:
        outputs = session.run({**given.named(), **empty})
    for layer in range(program.config.num_layers):
        for name, official in zip(present_names(layer), ("cache_k", "cache_v"), strict=True):
            expected = golden[f"prefill.{official}.{layer}"]
            if golden.name.startswith("chatglm"):
                expected = expected.transpose(1, 2, 0, 3)  # official [t, b, g, d]
            assert difference(outputs[name], expected) <= BOUND


@pytest.mark.parametrize("case", ["loss", "loss_padded"])
def test_loss(session: Session, golden: Golden, case: str) -> None:
    """The official loss, from the logits of either runtime; in PyTorch also as the model itself returns it."""
    if f"{case}.loss" not in golden:
        pytest.skip(f"{golden.name} was published without the case {case}")
    mask, positions = (golden.tensors.get(f"{case}.{name}") for name in ("attention_mask", "position_ids"))
    given, labels = feeds(golden[f"{case}.input_ids"], mask, positions), torch.from_numpy(golden[f"{case}.labels"])
    logits = torch.from_numpy(session.prefill(given))
    official = float(golden[f"{case}.loss"])
    assert abs(float(label_loss(logits, labels, shift=session.config.label_shift)) - official) <= 1e-5
    if isinstance(session, TorchSession):
        tensors = (torch.tensor(array) for array in given.named().values())
        assert abs(float(session.model(*tensors, labels_BS=labels).loss) - official) <= 1e-5


# -- an independent judge ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatglm2", "glm4_hf"])
def test_onnx_reference_evaluator(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    """The standard's own evaluator reads the program as ONNX Runtime does."""
    golden, program = Golden(name), exported(name)
    evaluator = ReferenceEvaluator(onnx.load(str(program.model_path)))
    given = feeds(golden["chunk.input_ids"])
    empty = {
        key: np.zeros(program.signature.input(key).shape(**{BATCH: 1, PAST: 0}), np.float32)
        for layer in range(program.config.num_layers)
        for key in past_names(layer)
    }
    logits = np.asarray(evaluator.run([LOGITS], {**given.named(), **empty})[0])
    split = golden["chunk.logits_first"].shape[1]
    assert difference(logits[:, :split], golden["chunk.logits_first"]) <= BOUND


# -- controls: each planted defect must be seen -----------------------------------------------------


def _program_error(program: OnnxProgram, golden: Golden, model: onnx.ModelProto) -> float:
    """The worst prefill error of a changed graph beside the program's own weights."""
    changed = program.folder / "control.onnx"
    onnx.save(model, str(changed))
    try:
        import onnxruntime

        runtime = onnxruntime.InferenceSession(str(changed), providers=["CPUExecutionProvider"])
        given = feeds(golden["prefill.input_ids"]).named()
        for spec in program.signature.inputs:
            if spec.name not in given:
                given[spec.name] = np.zeros(spec.shape(**{BATCH: 1, PAST: 0}), np.float32)
        (logits,) = runtime.run([LOGITS], given)
    finally:
        changed.unlink()
    return difference(logits, golden["prefill.logits"])


def _graph(program: OnnxProgram) -> onnx.ModelProto:
    return onnx.load(str(program.model_path), load_external_data=False)


@pytest.mark.parametrize("name", CAUSAL)
def test_control_other_rotary_pairs_fail(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    model = _graph(exported(name))
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding":
            kept = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            flipped = kept | {"interleaved": 1 - kept.get("interleaved", 0)}
            del node.attribute[:]
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in flipped.items())
    assert _program_error(exported(name), Golden(name), model) > 100 * BOUND


@pytest.mark.parametrize("name", CAUSAL)
def test_control_wrong_group_order_fails(name: str, tmp_path: Path) -> None:
    """Query heads dealt to the key-value heads in turn instead of in blocks, in PyTorch and in the program."""
    golden, checkpoint = Golden(name), open_checkpoint(Golden(name).folder)
    rules = checkpoint.weight_map.rules
    dealt = (_dealt(rule, checkpoint.config) if ".attention.qkv." in rule.target else rule for rule in rules)
    checkpoint.weight_map = replace(checkpoint.weight_map, rules=tuple(dealt))
    program = api.export(checkpoint, tmp_path / "out")
    for source in (checkpoint, program):
        with api.load_session(source) as session:
            logits = session.prefill(feeds(golden["prefill.input_ids"]))
        assert difference(logits, golden["prefill.logits"]) > 100 * BOUND


def _dealt(rule: WeightRule, config: GlmConfig) -> WeightRule:
    """The same projection with its query heads in another order."""
    order = torch.arange(config.num_heads).view(config.kv_heads, -1).t().flatten()
    rows = (order[:, None] * config.head_dim + torch.arange(config.head_dim)).flatten()

    def layout(sources: Sequence[torch.Tensor]) -> torch.Tensor:
        packed = rule.layout(sources)
        return torch.cat((packed[: config.q_size][rows], packed[config.q_size :]))

    return replace(rule, layout=layout)


@pytest.mark.parametrize("name", CAUSAL)
def test_control_position_off_by_one_in_decode_fails(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    golden = Golden(name)
    prompt = golden["prefill.input_ids"]
    with OrtSession(exported(name)) as session:
        session.prefill(feeds(prompt))
        token = golden["decode.input_ids"][:, :1]
        wrong = np.full((1, 1), prompt.shape[1] + 1, np.int64)
        logits = session.decode(feeds(token, positions=wrong, past=prompt.shape[1]))
    assert difference(logits, golden["decode.logits"][:, :1]) > BOUND


@pytest.mark.parametrize(("name", "ratio"), [("chatglm2_32k", 1), ("glm4_remote", 1), ("glm4_remote", 250)])
def test_control_ignored_rope_ratio_fails(name: str, ratio: float) -> None:
    checkpoint, golden = open_checkpoint(Golden(name).folder), Golden(name)
    rotary = checkpoint.config.rotary
    wrong = replace(rotary, position_scale=1.0) if name == "chatglm2_32k" else replace(rotary, base=10000.0 * ratio)
    checkpoint.config = replace(checkpoint.config, rotary=wrong)
    logits = load_reference(checkpoint)(torch.from_numpy(golden["long.input_ids"])).logits.numpy()
    assert difference(logits[:, -8:], golden["long.logits_last8"]) > 100 * BOUND
