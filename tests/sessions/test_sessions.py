"""The cache inside ONNX Runtime: in place, growing when it must, and bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.graphs import dialects
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.machine.gpu import has_driver
from glm_export.sessions.onnxruntime import cache as buffers, cuda_graph
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.onnxruntime.cuda_graph import CapturedGraph, GraphIds
from glm_export.sessions.onnxruntime.runtime import reads_ragged, usable_threads
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import SessionDescription
from glm_export.sessions.torch import TorchSession
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.signature import Cache

IDS = [5, 900, 31, 7, 12]


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    return api.export("demo", tmp_path_factory.mktemp("sessions") / "ort", dialect="ort")


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    return api.export("demo", tmp_path_factory.mktemp("sessions") / "static", dialect="tensorrt", max_length=24)


def cache_of(session: OrtSession) -> InPlace:
    assert isinstance(session.cache, InPlace)
    return session.cache


def test_a_step_writes_into_the_memory_it_reads(fused: OnnxProgram) -> None:
    """Past and present are one address from prefill on, and a step changes one column of it."""
    with OrtSession(fused) as session:
        feeds = session.feeds([Prompt(ids=tuple(IDS))])
        session.prefill(feeds)
        cache = cache_of(session)
        addresses = [value.data_ptr() for value in cache._values]
        before = cache._values[0].numpy().copy()
        session.decode(feeds.next_step([3], 1000))
        assert [value.data_ptr() for value in cache._values] == addresses
        changed = np.flatnonzero((cache._values[0].numpy() != before).any(axis=(0, 1, 3)))
        assert changed.tolist() == [len(IDS)]


def test_a_cache_that_is_outgrown_grows(fused: OnnxProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = Stopping(max_new_tokens=40)
    with OrtSession(fused) as session:
        (expected,) = generate_ids(session, [IDS], stopping=stopping)
        assert cache_of(session).reserved >= len(IDS) + buffers.FIRST_ROOM
        monkeypatch.setattr(buffers, "FIRST_ROOM", 3)
        (found,) = generate_ids(session, [IDS], stopping=stopping)
        # 8 columns, doubled to 16, 32 and 64.
        assert cache_of(session).reserved == 64
    assert found.ids == expected.ids


def test_a_static_cache_ends_a_row(static: OnnxProgram) -> None:
    with OrtSession(static) as session:
        (row,) = generate_ids(session, [IDS], stopping=Stopping(max_new_tokens=100))
        assert (row.finish_reason, len(row.ids)) == ("context", 24 - len(IDS))
        with pytest.raises(InputError, match="25 tokens are wanted, the program's static cache holds 24"):
            generate_ids(session, [[1] * 25], stopping=Stopping())


def test_max_length_is_for_static_caches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dialect ort has no cache of fixed size"):
        api.export("demo", tmp_path / "out", dialect="ort", max_length=64)
    with pytest.raises(InputError, match="--max-length must be 1 to"):
        api.export("demo", tmp_path / "out", dialect="tensorrt", max_length=10**9)


def test_chunks_of_several_rows_on_a_past(fused: OnnxProgram) -> None:
    """Before ONNX Runtime 1.32 the operator reads several tokens on a past for one row only."""
    with OrtSession(fused) as session:
        feeds = session.feeds([Prompt(ids=tuple(IDS)), Prompt(ids=(4, 4, 4))])
        whole = session.prefill(feeds)
        first, second = feeds.chunks(3)
        ended = session.prefill(first)[1]
        np.testing.assert_allclose(ended, whole[1], atol=2e-5)
        np.testing.assert_allclose(session.decode(second)[0], whole[0], atol=2e-5)


def test_a_session_says_what_it_is(fused: OnnxProgram, static: OnnxProgram, demo_program: OnnxProgram) -> None:
    """Also which weights a step reads: those of the program, one way or the other, and an embedding's row each."""
    kinds = {"onnx": (demo_program, Cache.GROWING), "ort": (fused, Cache.SHARED), "tensorrt": (static, Cache.STATIC)}
    traffic = set()
    for dialect, (program, cache) in kinds.items():
        with OrtSession(program, ["CPUExecutionProvider"], threads=1) as session:
            assert session.describe() == SessionDescription(
                runtime="onnxruntime",
                version=onnxruntime.__version__,
                device="cpu",
                dialect=dialect,
                dtype="float32",
                cache=cache,
                threads=1,
                ragged=dialect == "ort" and reads_ragged(None),
            )
            expected = BatchInvariance.CLOSE if cache is Cache.GROWING else BatchInvariance.EXACT
            assert session.batch_invariance is expected
            assert session.device_memory() is None
            row_bytes = session.weight_traffic(3) - session.weight_traffic(2)
            assert 4 * session.config.hidden_size <= row_bytes < 4 * session.config.hidden_size + 2000
            traffic.add(session.weight_traffic(0) // 100_000)
    with TorchSession(api.open_checkpoint("demo"), "bfloat16") as session:
        described = session.describe()
        assert (described.runtime, described.version, described.dialect) == ("pytorch", torch.__version__, None)
        assert (described.device, described.dtype, described.cache) == ("cpu", "bfloat16", Cache.GROWING)
        assert described.threads == torch.get_num_threads()
        assert session.batch_invariance is BatchInvariance.CLOSE
        traffic.add(2 * session.weight_traffic(0) // 100_000)
    assert len(traffic) == 1


@pytest.mark.parametrize(
    ("name", "dialect", "expected"),
    [
        ("int8-dynamic", "ort", "none"), ("int8-dynamic", "onnx", "exact"), ("int4-int8-prompt", "ort", "none"),
        ("int8-weights", "ort", "close"), ("int8-smoothquant", "tensorrt", "exact"), ("int8-token", "ort", "exact"),
    ],
)  # fmt: skip
def test_how_far_rows_of_a_recipe_depend_on_others(name: str, dialect: str, expected: str) -> None:
    """In explicit form a recipe's activations have scales found beforehand, or none."""
    assert recipes.load(name).carried_by(dialects.load(dialect).can).batch_invariance.value == expected


@pytest.mark.skipif(has_driver(), reason="speaks of machines without an NVIDIA driver")
def test_a_cuda_graph_needs_a_gpu(fused: OnnxProgram) -> None:
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        OrtSession(fused, cuda_graph=True)


def test_threads_are_those_of_the_process(fused: OnnxProgram) -> None:
    assert usable_threads() >= 1
    with OrtSession(fused, threads=1) as session:
        assert session.runtime.get_session_options().intra_op_num_threads == 1
    with OrtSession(fused) as session:
        assert session.runtime.get_session_options().intra_op_num_threads == usable_threads()


@pytest.fixture
def captured(fused: OnnxProgram) -> Iterator[OrtSession]:
    """As on CUDA, with inputs, logits and cache bound once; the CPU provider computes instead of launching again."""
    with OrtSession(fused, ["CPUExecutionProvider"]) as session:
        session._captured = CapturedGraph(session.runtime, session.signature, GraphIds(), "cpu")
        session.cache = session.new_cache()
        yield session


def steps_of(session: OrtSession, feeds: Feeds, steps: int) -> tuple[Feeds, list[np.ndarray]]:
    found = []
    for step in range(steps):
        feeds = feeds.next_step([step + 3] * feeds.batch, 1000)
        # On the CPU the next step writes over them; from a device they are copied.
        found.append(session.decode(feeds).copy())
    return feeds, found


def test_a_captured_step_reads_the_batch_there_is(fused: OnnxProgram, captured: OrtSession) -> None:
    """Prompts of one length one after another, rows that come and go: it is bound anew whenever buffers move."""
    others = [Prompt(ids=tuple(IDS)), Prompt(ids=tuple(IDS[::-1])), Prompt(ids=(4, 4, 4))]
    with OrtSession(fused, ["CPUExecutionProvider"]) as plain:
        for prompts in ([others[0]], [others[1]], others[:2], others[1:], others):
            results = []
            for session in (plain, captured):
                feeds = session.feeds(prompts)
                session.prefill(feeds)
                feeds, found = steps_of(session, feeds, 2)
                feeds, _ = session.join(feeds, session.feeds([Prompt(ids=(9, 8))]))
                feeds, more = steps_of(session, feeds, 2)
                feeds = session.truncate(session.leave(feeds, [0]), 0, 2)
                results.append([*found, *more, *steps_of(session, feeds, 2)[1]])
            for expected, found in zip(*results, strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_step_is_captured_once_while_nothing_moves(captured: OrtSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "FIRST_ROOM", 4)
    graph = captured._captured
    assert graph is not None
    feeds = captured.feeds([Prompt(ids=tuple(IDS))])
    captured.prefill(feeds)
    for steps, captures in ((1, 1), (3, 1), (1, 2)):  # 9 columns, then 18
        feeds, _ = steps_of(captured, feeds, steps)
        assert graph._ids.taken == captures


def test_control_a_captured_step_that_is_not_told(captured: OrtSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes on behind the prompt before."""
    logits = []
    for reset in (True, False):
        for ids in (IDS, IDS[::-1]):
            feeds = captured.feeds([Prompt(ids=tuple(ids))])
            captured.prefill(feeds)
            logits.append(steps_of(captured, feeds, 1)[1][0])
            if not reset:
                monkeypatch.setattr(captured.cache, "_moving", None)
    assert np.abs(logits[2] - logits[0]).max() <= 1e-5
    assert np.abs(logits[3] - logits[1]).max() > 1e-2


def test_on_a_device_buffers_stay_where_captured_steps_know_them(fused: OnnxProgram) -> None:
    """Emptied in place while they suffice; what a longer prompt or more rows need is new."""
    told: list[int] = []
    cache = InPlace(fused.signature, "cpu", capacity=512, moving=lambda: told.append(1))
    cache.start(2, 10)
    values, cache._device = list(cache._values), "cuda"
    for value in values:
        value.update_inplace(np.ones_like(value.numpy()))
    told.clear()
    cache.start(2, 12)
    assert not told
    assert all(value is other for value, other in zip(values, cache._values, strict=True))
    assert not any(value.numpy().any() for value in values)
    assert cache.lengths.tolist() == [0, 0]
    cache._device = "cpu"
    for rows, columns in ((2, cache.reserved + 1), (3, 12)):
        told.clear()
        cache.start(rows, columns)
        assert told
        assert cache._values[0] is not values[0]


def test_no_more_graphs_are_captured_than_memory_should_hold(
    captured: OrtSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime keeps them all until the session ends; what comes after runs without, and the same."""
    monkeypatch.setattr(cuda_graph, "MOST_GRAPHS", 2)
    graph = captured._captured
    assert graph is not None
    found = []
    for _ in range(4):
        feeds = captured.feeds([Prompt(ids=tuple(IDS))])
        captured.cache.clear()
        captured.prefill(feeds)
        found.append(steps_of(captured, feeds, 1)[1][0])
    assert graph._ids.taken == 2
    assert len(caplog.messages) == 2
    assert "2 CUDA graphs were captured" in caplog.messages[0]
    assert all(np.array_equal(one, found[0]) for one in found)
