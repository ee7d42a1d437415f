"""GLM and ChatGLM-6B: every golden case through PyTorch and the exported program, with controls that must fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import PrefixFeeds
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import label_loss
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession, load_reference
from tests.helpers.golden_data import BOUND, Golden, difference

GLM, CHATGLM = Golden("glm"), Golden("chatglm")
PREFILLS = [
    (GLM, "prefill_mask"), (GLM, "prefill_gmask"), (GLM, "prefill_smask"), (GLM, "prefill_multimask"), (GLM, "batch"),
    (CHATGLM, "prefill"), (CHATGLM, "prefill_mask"), (CHATGLM, "batch"),
]  # fmt: skip


@pytest.fixture(params=["torch", "onnxruntime"])
def load(request: pytest.FixtureRequest, exported: Callable[[str], OnnxProgram]) -> Callable[[Golden], Session]:
    """Sessions of golden checkpoints in each runtime."""
    return lambda golden: api.load_session(golden.folder if request.param == "torch" else exported(golden.name))


def attend(golden: Golden, mask: np.ndarray) -> np.ndarray:
    """The official mask as ours, True = attend: GLM's is 1 = attend, ChatGLM-6B's True = masked."""
    return ~mask if golden is CHATGLM else mask.astype(bool)


def feeds(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> PrefixFeeds:
    real = np.ones((ids.shape[0], mask.shape[-1]), bool)
    return PrefixFeeds(
        input_ids=ids, attention_mask=mask, position_ids=positions, real=real,
        context_lengths=np.zeros(len(ids), np.int64), mask_positions=positions[:, 0, -1],
    )  # fmt: skip


def case_feeds(golden: Golden, case: str) -> PrefixFeeds:
    mask = attend(golden, golden[f"{case}.attention_mask"])
    return feeds(golden[f"{case}.input_ids"], mask, golden[f"{case}.position_ids"])


def real_tokens(golden: Golden, case: str) -> np.ndarray:
    """Rows to compare: GLM's padding stands in no column of its mask, ChatGLM-6B's is given."""
    if f"{case}.valid" in golden:
        return golden[f"{case}.valid"]
    return attend(golden, golden[f"{case}.attention_mask"])[:, 0].any(axis=1)


@pytest.mark.parametrize(("golden", "case"), PREFILLS, ids=lambda value: getattr(value, "name", value))
def test_prefill(golden: Golden, case: str, load: Callable[[Golden], Session]) -> None:
    with load(golden) as session:
        logits = session.prefill(case_feeds(golden, case))
    assert np.isfinite(logits).all()
    assert difference(logits, golden[f"{case}.logits"], real_tokens(golden, case)) <= BOUND
    assert np.abs(golden[f"{case}.logits"]).max() > 5


def growing(golden: Golden, before: str, case: str) -> Iterator[PrefixFeeds]:
    """Teacher-forced steps: each sees what the last row before saw, and what was written since."""
    mask = attend(golden, golden[f"{before}.attention_mask"])[:, :, -1:, :]
    for step in range(golden[f"{case}.input_ids"].shape[1]):
        mask = np.concatenate([mask, np.ones((*mask.shape[:3], 1), bool)], axis=3)
        ids = golden[f"{case}.input_ids"][:, step : step + 1]
        yield feeds(ids, mask, golden[f"{case}.position_ids"][:, :, step : step + 1])


@pytest.mark.parametrize(
    ("golden", "before", "case"),
    [(GLM, "prefill_mask", "decode"), (GLM, "batch", "batch_decode"), (CHATGLM, "prefill", "decode"),
     (CHATGLM, "prefill_mask", "decode_mask"), (CHATGLM, "batch", "batch_decode")],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_decode(golden: Golden, before: str, case: str, load: Callable[[Golden], Session]) -> None:
    with load(golden) as session:
        session.prefill(case_feeds(golden, before))
        found = [session.decode(step) for step in growing(golden, before, case)]
    assert difference(np.concatenate(found, axis=1), golden[f"{case}.logits"]) <= BOUND


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_chunk_on_top_of_a_context(golden: Golden, load: Callable[[Golden], Session]) -> None:
    whole, split = case_feeds(golden, "chunk"), golden["chunk.logits_first"].shape[1]
    with load(golden) as session:
        parts = [
            feeds(whole.input_ids[:, a:b], whole.attention_mask[:, :, a:b, :b], whole.position_ids[:, :, a:b])
            for a, b in ((0, split), (split, whole.input_ids.shape[1]))
        ]
        first, second = session.prefill(parts[0]), session.decode(parts[1])
    assert difference(first, golden["chunk.logits_first"]) <= BOUND
    assert difference(second, golden["chunk.logits_second"]) <= BOUND


@pytest.mark.parametrize("case", ["sep_scalar", "sep_batch"])
def test_context_length_given_as_a_number(case: str, load: Callable[[Golden], Session]) -> None:
    """GLM's ``sep``: columns before it are seen by all, the rest is causal."""
    ids = GLM[f"{case}.input_ids"]
    batch, length = ids.shape
    sep = np.broadcast_to(GLM[f"{case}.attention_mask"], (batch,))
    mask = np.tri(length, dtype=bool)[None, None] | (np.arange(length) < sep[:, None, None, None])
    with load(GLM) as session:
        logits = session.prefill(feeds(ids, mask, GLM[f"{case}.position_ids"]))
    assert difference(logits, GLM[f"{case}.logits"]) <= BOUND


def test_context_length_beside_a_past(load: Callable[[Golden], Session]) -> None:
    ids, positions, split = (GLM[f"sep_mems.{name}"] for name in ("input_ids", "position_ids", "split"))
    at = int(split)

    def sep_mask(length: int, sep: np.ndarray) -> np.ndarray:
        return np.tri(length, dtype=bool)[None, None] | (np.arange(length) < sep[:, None, None, None])

    rest = ids.shape[1] - at
    second = sep_mask(rest, GLM["sep_mems.sep_second"])
    second = np.concatenate([np.ones((ids.shape[0], 1, rest, at), bool), second], axis=3)
    with load(GLM) as session:
        session.prefill(feeds(ids[:, :at], sep_mask(at, GLM["sep_mems.sep_first"]), positions[:, :, :at]))
        logits = session.decode(feeds(ids[:, at:], second, positions[:, :, at:]))
    assert difference(logits, GLM["sep_mems.logits_second"]) <= BOUND


def test_multiple_choice_in_one_packed_sequence(load: Callable[[Golden], Session]) -> None:
    """The official packing: choices side by side, blind to each other; log-probabilities of their tokens summed."""
    with load(GLM) as session:
        logits = session.prefill(case_feeds(GLM, "multiple_choice"))
    real = real_tokens(GLM, "multiple_choice")
    assert difference(logits, GLM["multiple_choice.lm_logits"], real) <= BOUND
    chances = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    inputs = GLM.facts["multiple_choice_inputs"]
    for row, (choices, places) in enumerate(zip(inputs["choice_ids"], inputs["choice_indices"], strict=True)):
        for column, (ids, where) in enumerate(zip(choices, places, strict=True)):
            found = sum(chances[row, place, token] for token, place in zip(ids, where, strict=True))
            assert abs(found - GLM["multiple_choice.logits"][row, column]) <= BOUND


def test_ids_alone_are_plain_causal() -> None:
    model = load_reference(open_checkpoint(GLM.folder))
    logits = model(torch.from_numpy(GLM["defaults.input_ids"])).logits.numpy()
    assert difference(logits, GLM["defaults.logits"]) <= BOUND


@pytest.mark.parametrize(
    ("golden", "case"), [(GLM, "loss"), (CHATGLM, "loss_padded")], ids=lambda value: getattr(value, "name", value)
)
def test_loss(golden: Golden, case: str, load: Callable[[Golden], Session]) -> None:
    """The official loss, from the logits of either runtime; in PyTorch also as the model itself returns it."""
    given, labels = case_feeds(golden, case), torch.from_numpy(golden[f"{case}.labels"])
    official = float(golden[f"{case}.loss"])
    with load(golden) as session:
        logits = torch.from_numpy(session.prefill(given))
        assert abs(float(label_loss(logits, labels, shift=session.config.label_shift)) - official) <= 2e-5
        if isinstance(session, TorchSession):
            tensors = (torch.tensor(array) for array in given.named().values())
            assert abs(float(session.model(*tensors, labels_BS=labels).loss) - official) <= 2e-5


def test_loss_of_chatglm_6b_from_ids_alone(load: Callable[[Golden], Session]) -> None:
    """The official model makes masks and positions from the ids; so do prompts."""
    ids, labels = CHATGLM["loss.input_ids"], torch.from_numpy(CHATGLM["loss.labels"])
    with load(CHATGLM) as session:
        given = prefill_feeds([session.prompt(row.tolist()) for row in ids], session.config)
        logits = session.prefill(given)
    assert difference(logits, CHATGLM["loss.logits"]) <= BOUND
    assert abs(float(label_loss(torch.from_numpy(logits), labels, shift=1)) - float(CHATGLM["loss.loss"])) <= 2e-5


def test_ids_become_the_official_prompt(load: Callable[[Golden], Session]) -> None:
    """From ids alone: masks and positions that ChatGLM-6B's model makes itself."""
    with load(CHATGLM) as session:
        for case in ("prefill", "prefill_mask"):
            prompt = session.prompt(CHATGLM[f"{case}.input_ids"][0].tolist())
            given = prefill_feeds([prompt], session.config)
            assert np.array_equal(given.position_ids, CHATGLM[f"{case}.position_ids"])
            assert np.array_equal(given.attention_mask, attend(CHATGLM, CHATGLM[f"{case}.attention_mask"]))
            assert difference(session.prefill(given), CHATGLM[f"{case}.logits_ids_only"]) <= BOUND


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_greedy_ids(golden: Golden, load: Callable[[Golden], Session]) -> None:
    with load(golden) as session:
        for case in golden.facts["greedy"]:
            (row,) = generate_ids(session, [case["prompt_ids"]], stopping=Stopping(max_new_tokens=len(case["new_ids"])))
            assert row.ids == case["new_ids"]
        cases = golden.facts["greedy"]
        rows = generate_ids(session, [c["prompt_ids"] for c in cases], stopping=Stopping(max_new_tokens=20))
        assert [row.ids for row in rows] == [c["new_ids"][:20] for c in cases]  # padded together, each as alone


# -- controls ------------------------------------------------------------------------------------------


def _prefill_error(golden: Golden, case: str, **changes: object) -> float:
    checkpoint = open_checkpoint(golden.folder)
    checkpoint.config = replace(checkpoint.config, **changes)
    given = case_feeds(golden, case)
    output = load_reference(checkpoint)(*(torch.from_numpy(array) for array in given.named().values()))
    return difference(output.logits.numpy(), golden[f"{case}.logits"], real_tokens(golden, case))


def test_controls_of_chatglm_6b() -> None:
    from glm_export.spec.config import Activation

    rotary = open_checkpoint(CHATGLM.folder).config.rotary
    assert rotary is not None
    assert _prefill_error(CHATGLM, "prefill") <= BOUND
    assert _prefill_error(CHATGLM, "prefill", residual_alpha=(2 * 2) ** 0.5) > 1
    assert _prefill_error(CHATGLM, "prefill", rotary=replace(rotary, float16_frequencies=False)) > 3 * BOUND
    assert _prefill_error(CHATGLM, "prefill", rotary=replace(rotary, interleaved=True)) > 1
    assert _prefill_error(CHATGLM, "prefill", activation=Activation.GELU) > BOUND


def test_controls_of_glm() -> None:
    from glm_export.spec.config import Activation

    assert _prefill_error(GLM, "prefill_mask") <= BOUND
    assert _prefill_error(GLM, "prefill_mask", activation=Activation.GELU_TANH) > 3 * BOUND
    assert _prefill_error(GLM, "prefill_mask", norm_eps=1e-3) > 3 * BOUND


def test_control_of_positions_and_masks() -> None:
    given = case_feeds(GLM, "prefill_mask")
    model = load_reference(open_checkpoint(GLM.folder))

    def error(**changes: np.ndarray) -> float:
        tensors = (torch.from_numpy(array) for array in replace(given, **changes).named().values())
        return difference(model(*tensors).logits.numpy(), GLM["prefill_mask.logits"])

    assert error() <= BOUND
    length = given.input_ids.shape[1]
    assert error(attention_mask=np.tri(length, dtype=bool)[None, None]) > 100 * BOUND
    assert error(position_ids=given.position_ids[:, ::-1].copy()) > 100 * BOUND


def test_both_layouts_of_glm_read_alike(tmp_path: object) -> None:
    """Released files have no prefix; files saved again have ``glm.`` before every name."""
    from pathlib import Path

    from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

    values, root = tiny_values("glm_infilling"), Path(str(tmp_path))
    tensors = random_tensors(values)
    plain = open_checkpoint(write_checkpoint(root / "a", values, tensors, layout="pytorch_model.bin"))
    again = open_checkpoint(write_checkpoint(root / "b", values, {f"glm.{n}": t for n, t in tensors.items()}))
    plain.audit()
    again.audit()
    for (name, one), (_, other) in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
