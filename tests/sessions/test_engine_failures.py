"""What goes wrong with an engine: the session says so, goes on where it can, and does not where it cannot."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glm_export.artifacts.program import OnnxProgram
from glm_export.engines import vendor
from glm_export.errors import EnvironmentMissingError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.sessions.loop_request import LoopRequest
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.tensorrt.kernel_cache import KernelCache
from glm_export.sessions.tensorrt.step import contexts
from glm_export.sessions.tensorrt.weight_streaming import RESERVED_BYTES, budget_bytes, stream_weights

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
)

from tests.helpers.engine_stand_in import SCRATCH, StandInContext, stand_in_session
from tests.helpers.host_device import HostDevice
from tests.sessions.conftest import prompts_for

STOPPING = Stopping(max_new_tokens=6)
Export = Callable[..., OnnxProgram]


@pytest.mark.parametrize("where", ["prompt", "step", "loop"])
def test_a_failed_step_is_not_gone_on_from(where: str, exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies on the device then is not known; the next call says so in place of answering."""
    program = exported("chatglm2")
    session, _ = stand_in_session(program)
    prompts = prompts_for(program, 5)
    feeds = session.feeds(prompts)
    calls: dict[str, Callable[[], object]] = {
        "prompt": lambda: session.prefill(feeds),
        "step": lambda: session.decode(feeds.next_step([1], 63)),
        "loop": lambda: list(session.read_loop(session.token_loop(feeds.next_step([1], 63), loop_request()), 63)),
    }
    with session:
        if where != "prompt":
            session.prefill(feeds)
        with monkeypatch.context() as patched:
            patched.setattr(StandInContext, "execute_async_v3", lambda *_: False)
            with pytest.raises(EnvironmentMissingError, match="could not run profile"):
                calls[where]()
        with pytest.raises(EnvironmentMissingError, match=r"the engine failed before.*load it again"):
            session.prefill(feeds)
        with pytest.raises(EnvironmentMissingError, match="the engine failed before"):
            session.run({})


def loop_request() -> LoopRequest:
    return LoopRequest(
        remaining_B=np.array([4]), finished_B=np.array([False]), stop_ids=frozenset(), pad_token_id=0, last_position=63
    )


def test_a_graph_is_dropped_when_its_context_is_used_otherwise(exported: Export) -> None:
    """The stand-in raises, as CUDA would go wrong, where a graph is launched whose context did something else since."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    with session:
        feeds = session.feeds(prompts_for(program, 5))
        session.prefill(feeds)
        for token in (1, 2):
            feeds = feeds.next_step([token], 63)
            session.decode(feeds)
        captures = engine.device.captures
        step, pairs = session._decode_step, session.cache.pairs(0, 1)
        recorded = step._recorded
        step.run(session.layout.inputs_without_cache(feeds), [*pairs])
        assert step._recorded is None
        session.decode(feeds.next_step([3], 63))
        assert engine.device.captures == captures + 1
        assert recorded is not None
        with pytest.raises(RuntimeError, match="used otherwise since it was recorded"):
            recorded.replay()


def test_a_profile_that_is_refused_is_told(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's bindings raise, where its documentation has False."""

    def refused(*_: object) -> bool:
        raise RuntimeError("Profile 0 is in use")

    monkeypatch.setattr(StandInContext, "set_optimization_profile_async", refused)
    with pytest.raises(EnvironmentMissingError, match=r"profile decode cannot be set: .*Profile 0 is in use"):
        stand_in_session(exported("chatglm2"))


def test_two_contexts_take_two_profiles(exported: Export) -> None:
    """Up to TensorRT 9 a profile belongs to one context."""
    session, engine = stand_in_session(exported("chatglm2"))
    with session:
        assert engine.profiles_in_use == {0, 1}
        engine.profile_sharing = False
        with pytest.raises(RuntimeError, match="in use by another context"):
            StandInContext(engine).set_optimization_profile_async(0, engine.device.stream)


def test_scratch_holds_what_the_engine_wants_beyond_its_profiles(exported: Export) -> None:
    """Streamed weights are staged there."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    assert session._scratch.numel() == max(SCRATCH)
    engine.device_memory_size_v2 = 3 * max(SCRATCH)
    _, scratch = contexts(session._loaded, SCRATCH)
    assert scratch.numel() == 3 * max(SCRATCH)
    session.close()


def test_no_ranges_for_profilers(exported: Export) -> None:
    session, engine = stand_in_session(exported("chatglm2"))
    none = vendor.load(vendor.TENSORRT_RTX).module.ProfilingVerbosity.NONE
    with session:
        assert session._decode_step._context.nvtx_verbosity == none
        assert engine.device.captures == 0


def test_numbers_of_an_overflowed_batch_do_not_stay(exported: Export) -> None:
    """A mask hides a column from attention, and no NaN from a product with 0."""
    program = exported("chatglm2")
    session, _ = stand_in_session(program)
    prompts = prompts_for(program, 4)
    with session, OrtSession(program) as reference:
        expected = generate_ids(reference, prompts, stopping=STOPPING)[0].ids
        generate_ids(session, prompts_for(program, 20), stopping=STOPPING)
        for pair in session.cache.pairs(0, 1):
            pair.past[:, :, 10:] = torch.nan
        assert generate_ids(session, prompts, stopping=STOPPING)[0].ids == expected
        assert all(pair.past.isfinite().all() for pair in session.cache.pairs(0, 1))


@pytest.mark.parametrize("graph", [True, False])
def test_tensorrt_rtx_captures_by_itself(graph: bool, exported: Export) -> None:
    """Kernels for a shape are compiled in its first calls; our capture would keep those it falls back to until then."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program, runtime=vendor.TENSORRT_RTX, cuda_graph=graph)
    strategies = vendor.load(vendor.TENSORRT_RTX).module.CudaGraphStrategy
    with session:
        generate_ids(session, prompts_for(program, 4, 6), stopping=STOPPING)
    assert engine.graphs == (strategies.WHOLE_GRAPH_CAPTURE if graph else strategies.DISABLED)
    assert engine.device.captures == 0
    (Path(program.folder) / "kernels.cache").unlink()


@pytest.mark.parametrize("name", ["chatglm2", "chatglm"])
def test_tensorrt_rtx_reads_prompts_of_few_lengths(name: str, exported: Export) -> None:
    """Each length is compiled for, so prompts are padded up to few. The text is the same."""
    program = exported(name)
    session, engine = stand_in_session(program, runtime=vendor.TENSORRT_RTX, prefill_tokens=40)
    with session, OrtSession(program) as reference:
        for lengths in ((3,), (5, 9), (17,), (33,), (37,)):
            prompts = prompts_for(program, *lengths)
            expected = [row.ids for row in generate_ids(reference, prompts, stopping=STOPPING)]
            assert [row.ids for row in generate_ids(session, prompts, stopping=STOPPING)] == expected
    widths = {shape[1] for shape in engine.calls} - {1}
    assert widths == {16, 32, 40}
    (Path(program.folder) / "kernels.cache").unlink()


def test_a_full_disk_keeps_no_kernels_and_frees_all_the_same(
    exported: Export, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    session, _ = stand_in_session(exported("chatglm2"), runtime=vendor.TENSORRT_RTX)
    released: list[bool] = []
    monkeypatch.setattr(HostDevice, "release", lambda _: released.append(True))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        session.close()
    assert released == [True]
    (told,) = caplog.messages
    assert "compiled kernels are not kept" in told
    assert "No space left" in told


def test_what_breaks_while_kernels_are_kept_frees_all_the_same(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: KernelCache) -> None:
        raise RuntimeError("serialize")

    session, _ = stand_in_session(exported("chatglm2"), runtime=vendor.TENSORRT_RTX)
    released: list[bool] = []
    monkeypatch.setattr(HostDevice, "release", lambda _: released.append(True))
    monkeypatch.setattr(KernelCache, "save", broken)
    with pytest.raises(RuntimeError, match="serialize"):
        session.close()
    assert released == [True]


@pytest.mark.parametrize(
    ("free", "budget"),
    [(10_000 + RESERVED_BYTES, 7_000), (3_000 + 2_500 + RESERVED_BYTES, 2_500), (3_000 + RESERVED_BYTES, 0)],
)
def test_streamed_weights_leave_room_for_what_comes_after(free: int, budget: int) -> None:
    assert budget_bytes(streamable=7_000, free=free, taken=3_000) == budget


def test_streaming_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(EnvironmentMissingError, match=r"need 0.27 GB without any weights; build with"):
        budget_bytes(streamable=7_000, free=3_000, taken=3_000)


@pytest.mark.parametrize(("free", "streamed"), [(1 << 30, False), (RESERVED_BYTES + (16 << 20), True)])
def test_streamed_weights_are_never_captured(free: int, streamed: bool, exported: Export) -> None:
    """Below the whole budget a step waits for the host."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    engine.device.free = free
    caches: Any = SimpleNamespace(program=program, manifest={"memory": {"cache": 15 << 20}})
    loaded: Any = SimpleNamespace(
        streamable_weights_size=8 << 20, weight_streaming_budget_v2=None, num_optimization_profiles=2,
        get_device_memory_size_for_profile_v2=lambda index: SCRATCH[index],
    )  # fmt: skip
    assert stream_weights(session._loaded.tensorrt, loaded, caches, engine.device) == streamed
    assert (loaded.weight_streaming_budget_v2 == 8 << 20) == (not streamed)
    session.close()
    again, engine = stand_in_session(program, streamed=streamed)
    with again:
        generate_ids(again, prompts_for(program, 5), stopping=STOPPING)
    assert bool(engine.device.captures) == (not streamed)
