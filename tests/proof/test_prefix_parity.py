"""GLM and ChatGLM-6B: every golden case through PyTorch and the exported program, with controls that must fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import EnvironmentMissingError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prefix_feeds import PrefixFeeds, RightPaddedPrefixFeeds
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import label_loss
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession, load_reference
from tests.helpers.golden_data import BOUND, Golden, difference

GLM, CHATGLM = Golden("glm"), Golden("chatglm")
PREFILLS = [
    (GLM, "prefill_mask"), (GLM, "prefill_gmask"), (GLM, "prefill_smask"), (GLM, "prefill_multimask"), (GLM, "batch"),
    (CHATGLM, "prefill"), (CHATGLM, "prefill_mask"), (CHATGLM, "batch"),
]  # fmt: skip


@pytest.fixture(scope="module")
def on_one_buffer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxProgram]:
    """Programs of dialect ort with all logits, made once."""
    root = tmp_path_factory.mktemp("ort")
    return cache(lambda name: api.export(Golden(name).folder, root / name, dialect="ort", logits="all"))


@pytest.fixture(params=["torch", "onnx", "ort"])
def load(
    request: pytest.FixtureRequest,
    exported: Callable[[str], OnnxProgram],
    on_one_buffer: Callable[[str], OnnxProgram],
) -> Callable[[Golden], Session]:
    """Sessions of golden checkpoints in each runtime, and kind of cache."""
    program = {"onnx": exported, "ort": on_one_buffer}.get(request.param)
    return lambda golden: api.load_session(golden.folder if program is None else program(golden.name))


def attend(golden: Golden, mask: np.ndarray) -> np.ndarray:
    """The official mask as ours, True = attend: GLM's is 1 = attend, ChatGLM-6B's True = masked."""
    return ~mask if golden is CHATGLM else mask.astype(bool)


def feeds(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> PrefixFeeds:
    real = np.ones((ids.shape[0], mask.shape[-1]), bool)
    return PrefixFeeds(
        input_ids=ids, attention_mask=mask, position_ids=positions, real=real,
        context_lengths=np.zeros(len(ids), np.int64), mask_positions=positions[:, 0, -1],
    )  # fmt: skip


def fed(session: Session, given: PrefixFeeds) -> Feeds:
    """The same call as a session takes it; what a row sees is its mask's business, so columns stay where they are."""
    if not session.signature.own_lengths:
        return given
    rows, new = given.input_ids.shape
    columns, config = given.attention_mask.shape[-1], session.config
    return RightPaddedPrefixFeeds(
        input_ids=given.input_ids, attention_mask=given.attention_mask, position_ids=given.position_ids,
        lengths=np.full(rows, columns), first_columns=np.full(rows, columns - new),
        context_lengths=given.context_lengths, mask_positions=given.mask_positions,
        last_columns=np.full(rows, config.most_columns - 1),
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
        logits = session.prefill(fed(session, case_feeds(golden, case)))
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
        session.prefill(fed(session, case_feeds(golden, before)))
        found = [session.decode(fed(session, step)) for step in growing(golden, before, case)]
    assert difference(np.concatenate(found, axis=1), golden[f"{case}.logits"]) <= BOUND


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_chunk_on_top_of_a_context(golden: Golden, load: Callable[[Golden], Session]) -> None:
    whole, split = case_feeds(golden, "chunk"), golden["chunk.logits_first"].shape[1]
    with load(golden) as session:
        parts = [
            feeds(whole.input_ids[:, a:b], whole.attention_mask[:, :, a:b, :b], whole.position_ids[:, :, a:b])
            for a, b in ((0, split), (split, whole.input_ids.shape[1]))
        ]
        first, second = session.prefill(fed(session, parts[0])), session.decode(fed(session, parts[1]))
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
        logits = session.prefill(fed(session, feeds(ids, mask, GLM[f"{case}.position_ids"])))
    assert difference(logits, GLM[f"{case}.logits"]) <= BOUND


def test_context_length_beside_a_past(load: Callable[[Golden], Session]) -> None:
    ids, positions, split = (GLM[f"sep_mems.{name}"] for name in ("input_ids", "position_ids", "split"))
    at = int(split)

    def sep_mask(length: int, sep: np.ndarray) -> np.ndarray:
        return np.tri(length, dtype=bool)[None, None] | (np.arange(length) < sep[:, None, None, None])

    rest = ids.shape[1] - at
    second = sep_mask(rest, GLM["sep_mems.sep_second"])
    second = np.concatenate([np.ones((ids.shape[0], 1, rest, at), bool), second], axis=3)
    beginning = feeds(ids[:, :at], sep_mask(at, GLM["sep_mems.sep_first"]), positions[:, :, :at])
    end = feeds(ids[:, at:], second, positions[:, :, at:])
    with load(GLM) as session:
        session.prefill(fed(session, beginning))
        logits = session.decode(fed(session, end))
    assert difference(logits, GLM["sep_mems.logits_second"]) <= BOUND


def test_multiple_choice_in_one_packed_sequence(load: Callable[[Golden], Session]) -> None:
    """The official packing: choices side by side, blind to each other; log-probabilities of their tokens summed."""
    with load(GLM) as session:
        logits = session.prefill(fed(session, case_feeds(GLM, "multiple_choice")))
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
        logits = torch.from_numpy(session.prefill(fed(session, given)))
        assert abs(float(label_loss(logits, labels, shift=session.config.label_shift)) - official) <= 2e-5
        if isinstance(session, TorchSession):
            tensors = (torch.tensor(array) for array in given.named().values())
            assert abs(float(session.model(*tensors, labels_BS=labels).loss) - official) <= 2e-5


def test_loss_of_chatglm_6b_from_ids_alone(load: Callable[[Golden], Session]) -> None:
    """The official model makes masks and positions from the ids; so do prompts."""
    ids, labels = CHATGLM["loss.input_ids"], torch.from_numpy(CHATGLM["loss.labels"])
    with load(CHATGLM) as session:
        logits = session.prefill(session.feeds([session.prompt(row.tolist()) for row in ids]))
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
            assert difference(session.prefill(fed(session, given)), CHATGLM[f"{case}.logits_ids_only"]) <= BOUND


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


def planted(program: OnnxProgram, folder: Path, change: Callable[[onnx.NodeProto], None]) -> OnnxProgram:
    """The same program with a defect in the attention of its last layer."""
    shutil.copytree(program.folder, folder)
    path = folder / program.model_path.name
    model = onnx.load(str(path), load_external_data=False)
    change(next(node for node in reversed(model.graph.node) if node.op_type == "GroupQueryAttention"))
    onnx.save(model, str(path))
    return replace(program, folder=folder)


def _causal(node: onnx.NodeProto) -> None:
    next(attribute for attribute in node.attribute if attribute.name == "causal").i = 1


def _without_bias(node: onnx.NodeProto) -> None:
    node.input[10] = ""


@pytest.mark.parametrize("change", [_causal, _without_bias])
@pytest.mark.parametrize(("golden", "case"), [(GLM, "prefill_mask"), (CHATGLM, "prefill")], ids=["glm", "chatglm"])
def test_controls_of_the_fused_operator(
    golden: Golden,
    case: str,
    change: Callable[[onnx.NodeProto], None],
    tmp_path: Path,
    on_one_buffer: Callable[[str], OnnxProgram],
) -> None:
    """It masks causally unless told not to, and knows of a context by its bias alone."""
    program = planted(on_one_buffer(golden.name), tmp_path / "planted", change)
    with OrtSession(program) as session:
        logits = session.prefill(fed(session, case_feeds(golden, case)))
    assert difference(logits, golden[f"{case}.logits"]) > 100 * BOUND


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_the_cache_stays_where_it_is(golden: Golden, on_one_buffer: Callable[[str], OnnxProgram]) -> None:
    """What a step puts out is the buffer it read, and nothing in it changes but the new token's column."""
    with OrtSession(on_one_buffer(golden.name)) as session:
        prompt = session.prompt(golden.facts["greedy"][0]["prompt_ids"])
        feeds = session.feeds([prompt, prompt])
        session.prefill(feeds)
        assert isinstance(session.cache, InPlace)
        values = list(session.cache._values)
        before = [(value.data_ptr(), value.numpy().copy()) for value in values]
        feeds = feeds.next_step([5, 6], session.last_position(feeds))
        session.decode(feeds)
        presents = session.cache.binding(session.runtime).get_outputs()[1:]
        assert session.cache._values == values
        for value, present, (address, array) in zip(values, presents, before, strict=True):
            assert value.data_ptr() == present.data_ptr() == address
            changed = (value.numpy() != array).any(axis=(0, 1, 3))
            assert np.flatnonzero(changed).tolist() == [len(prompt.ids)]


def test_an_older_onnxruntime_is_refused(
    on_one_buffer: Callable[[str], OnnxProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.29.1")
    assert on_one_buffer("glm").manifest["needs"] == {"onnxruntime": "1.30"}
    message = "needs ONNX Runtime 1.30 or later, for operators as it has them; found 1.29.1: pip install -U onnxruntime"
    with pytest.raises(EnvironmentMissingError, match=message):
        OrtSession(on_one_buffer("glm"))
