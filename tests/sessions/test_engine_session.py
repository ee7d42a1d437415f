"""The engine session over a stand-in for TensorRT: everything but TensorRT's own numbers and speed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.engines import vendor
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.performance.measure import facts_of
from glm_export.performance.report import BenchOptions
from glm_export.proof.cases import parity_cases
from glm_export.proof.runners import canonical_signature
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import SessionDescription
from glm_export.sessions.tensorrt.kernel_cache import KERNELS
from glm_export.sessions.tensorrt.session import EngineSession
from glm_export.sessions.torch import TorchSession
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.signature import Cache
from tests.helpers.golden_data import Golden
from tests.helpers.host_device import MEMORY_IN_USE
from tests.sessions.conftest import LENGTH, prompts_for

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
)

from tests.helpers.engine_stand_in import StandInContext, StandInEngine, stand_in_session

STOPPING = Stopping(max_new_tokens=12)
Export = Callable[..., OnnxProgram]


@pytest.mark.parametrize(
    ("name", "dialect", "limits"),
    [
        ("chatglm2", "tensorrt", {"prefill_tokens": 8}),
        ("chatglm2", "tensorrt", {"prefill_tokens": 8, "prefill_batch": 2}),
        ("chatglm2", "tensorrt", {"prefill_batch": 4}),
        ("glm4_moe", "tensorrt", {"prefill_tokens": 16}),
        ("chatglm", "tensorrt", {}),
        ("glm", "tensorrt", {"prefill_batch": 2}),
        ("chatglm2", "portable", {"prefill_tokens": 8}),
        ("chatglm", "portable", {}),
    ],
)
def test_writes_what_onnx_runtime_writes(name: str, dialect: str, limits: dict[str, int], exported: Export) -> None:
    """A padded batch, each row alone, and four equal rows; prompts whole or in pieces, rows together or apart."""
    program = exported(name, dialect)
    prompts = prompts_for(program, 19, 5, 2, 30)
    session, _ = stand_in_session(program, **limits)
    with OrtSession(program) as reference, session:
        expected = [row.ids for row in generate_ids(reference, prompts, stopping=STOPPING)]
        assert [row.ids for row in generate_ids(session, prompts, stopping=STOPPING)] == expected
        alone = [generate_ids(session, [prompt], stopping=STOPPING)[0].ids for prompt in prompts]
        assert alone == expected
        equal = generate_ids(session, [prompts[0]] * 4, stopping=STOPPING)
        assert [row.ids for row in equal] == [expected[0]] * 4


@pytest.mark.parametrize(
    ("name", "dialect", "limits"),
    [
        ("chatglm2", "tensorrt", {}), ("glm", "tensorrt", {"prefill_batch": 2}), ("chatglm2", "portable", {}),
        ("chatglm", "portable", {}),
    ],
)  # fmt: skip
def test_single_calls_are_the_programs(name: str, dialect: str, limits: dict[str, int], exported: Export) -> None:
    """Cache handed in and out, in the canonical layout: bit for bit what ONNX Runtime returns."""
    program = exported(name, dialect)
    session, engine = stand_in_session(program, **limits)
    room = LENGTH if dialect == "tensorrt" else 0
    with OrtSession(program) as plain, TorchSession(api.open_checkpoint(Golden(name).folder)) as reference, session:
        cases = parity_cases(
            reference, program.config, canonical_signature(program), program.signature.cache, room, tokens=24
        )
        for case in cases:
            expected, found = plain.run(case.tensors), session.run(case.tensors)
            assert expected.keys() == found.keys()
            for output, array in expected.items():
                np.testing.assert_array_equal(found[output], array, err_msg=f"{case.name} {output}")
    assert len(engine.calls) >= len(cases)


def test_prompts_are_read_as_they_were_planned(exported: Export) -> None:
    """One row at a time and no wider than it is; what is longer in pieces; tokens of all rows together."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program, prefill_tokens=8)
    with session:
        generate_ids(session, prompts_for(program, 19, 5), stopping=Stopping(max_new_tokens=2))
    assert engine.calls == [(1, 8), (1, 8), (1, 3), (1, 5), (2, 1)]


def test_decode_is_captured_once_for_each_number_of_rows(exported: Export) -> None:
    """The first step runs and is recorded, those after it are launched again; another batch is recorded anew."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    with session:
        for rows, captures in ((2, 1), (2, 1), (3, 2), (2, 3)):
            before = engine.device.replays
            generate_ids(session, prompts_for(program, *range(4, 4 + rows)), stopping=STOPPING)
            assert engine.device.captures == captures
            steps = STOPPING.max_new_tokens - 1
            # Buffers of as many rows stay where they were, and so does what was recorded on them.
            assert engine.device.replays - before == (steps if rows == 2 and before and captures == 1 else steps - 1)


def test_rows_that_come_and_go_are_captured_anew(exported: Export) -> None:
    """A step launched again would write where the rows were; one cut back stays, and so does what was recorded."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    first, second, third = prompts_for(program, 7, 5, 4)
    changes: list[tuple[Callable[[Feeds], Feeds], int]] = [
        (lambda feeds: session.truncate(feeds, 0, 6), 0),
        (lambda feeds: session.join(feeds, session.feeds([third]))[0], 1),
        (lambda feeds: session.truncate(feeds, 2, 4), 0),
        (lambda feeds: session.leave(feeds, [1]), 1),
        (lambda feeds: session.copy_rows(feeds, [0]), 1),
        (lambda feeds: session.select(feeds, [2, 1, 0]), 1),
    ]
    with session:
        feeds = session.feeds([first, second])
        session.prefill(feeds)
        feeds = decoded_twice(session, feeds)
        for change, anew in changes:
            captures, replays = engine.device.captures, engine.device.replays
            feeds = decoded_twice(session, change(feeds))
            assert engine.device.captures - captures == anew
            assert engine.device.replays - replays == 2 - anew


def decoded_twice(session: EngineSession, feeds: Feeds) -> Feeds:
    for _ in range(2):
        feeds = feeds.next_step([5] * feeds.batch, 63)
        session.decode(feeds)
    return feeds


@pytest.mark.parametrize(("dialect", "wanted"), [("tensorrt", False), ("portable", True)])
def test_nothing_is_captured_unasked_or_where_shapes_change(dialect: str, wanted: bool, exported: Export) -> None:
    program = exported("chatglm2", dialect)
    session, engine = stand_in_session(program, cuda_graph=wanted)
    with session:
        generate_ids(session, prompts_for(program, 7), stopping=STOPPING)
    assert engine.device.captures == 0


def test_caches_of_another_batch_are_let_go(exported: Export) -> None:
    """Before those of the next one take their place: together they may not fit."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    held: list[int] = []
    with session:
        generate_ids(session, prompts_for(program, 7, 4), stopping=STOPPING)
        pasts = [weakref.ref(pair.past) for pair in session.cache.pairs(0, 1)]
        assert all(past() is not None for past in pasts)
        zeros = engine.device.zeros

        def counted(count: int, dtype: str) -> torch.Tensor:
            held.append(sum(past() is not None for past in pasts))
            return zeros(count, dtype)

        engine.device.zeros = counted  # type: ignore[method-assign]
        generate_ids(session, prompts_for(program, 7), stopping=STOPPING)
    assert held
    assert not any(held)


def test_what_cannot_be_captured_runs_all_the_same(exported: Export, caplog: pytest.LogCaptureFixture) -> None:
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    prompts = prompts_for(program, 7, 4)

    def refused(_: object) -> None:
        raise EnvironmentMissingError("operation not permitted when stream is capturing")

    engine.device.capture = refused  # type: ignore[method-assign, assignment]
    with OrtSession(program) as reference, session:
        expected = [row.ids for row in generate_ids(reference, prompts, stopping=STOPPING)]
        assert [row.ids for row in generate_ids(session, prompts, stopping=STOPPING)] == expected
    (told,) = caplog.messages
    assert told.startswith("steps run without a CUDA graph, which could not be captured: operation not permitted")


def test_control_what_is_recorded_forgets_new_inputs(exported: Export) -> None:
    """A graph launches what was recorded: were inputs bound anew each step, the recorded ones would be read again."""
    program = exported("chatglm2")
    session, engine = stand_in_session(program)
    (prompt,) = prompts_for(program, 9)
    with OrtSession(program) as reference, session:
        expected = generate_ids(reference, [prompt], stopping=STOPPING)[0].ids
        session.prefill(session.feeds([prompt]))
        step = session._decode_step
        feeds = session.feeds([prompt]).next_step([expected[0]], 63)
        session.decode(feeds)
        # From here on inputs are put where nobody reads.
        step._block._block = step._block._block.clone()
        feeds = feeds.next_step([expected[1]], 63)
        stale = session.decode(feeds)
    assert int(stale[0, -1].argmax()) != expected[2]
    assert engine.device.replays == 1


def test_logits_of_every_token(exported: Export) -> None:
    """Read in pieces and row by row, put together again; padding is nothing."""
    program = exported("chatglm2", logits="all")
    prompts = prompts_for(program, 19, 5)
    session, _ = stand_in_session(program, prefill_tokens=8)
    with OrtSession(program) as reference, session:
        feeds = session.feeds(prompts)
        expected, found = reference.prefill(feeds), session.prefill(feeds)
    assert found.shape == expected.shape
    for row, prompt in enumerate(prompts):
        length = len(prompt.ids)
        np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-5)


def test_last_logits_are_each_rows_own(exported: Export) -> None:
    """Rows read together end in different pieces."""
    program = exported("chatglm2")
    prompts = prompts_for(program, 19, 5, 9)
    session, _ = stand_in_session(program, prefill_tokens=8, prefill_batch=3, max_batch=3)
    with OrtSession(program) as reference, session:
        feeds = session.feeds(prompts)
        np.testing.assert_allclose(session.prefill(feeds), reference.prefill(feeds), atol=1e-5)


@pytest.mark.parametrize(("name", "dialect"), [("chatglm2", "tensorrt"), ("glm", "tensorrt"), ("chatglm2", "portable")])
def test_a_full_row_waits_for_the_others(name: str, dialect: str, exported: Export) -> None:
    """The cache ends for one row; where rows have columns of their own the other goes on."""
    program = exported(name, dialect)
    session, _ = stand_in_session(program)
    assert session.capacity is not None
    room = 3
    with session:
        long, short = generate_ids(
            session, prompts_for(program, session.capacity - room, 5), stopping=STOPPING
        )  # fmt: skip
    assert (len(long.ids), long.finish_reason) == (room, "context")
    assert len(short.ids) == (STOPPING.max_new_tokens if dialect == "tensorrt" else room)


def test_growing_caches_are_read_to_the_end(exported: Export) -> None:
    """Behind what the prefill profile was built for, a prompt's last tokens are read one by one."""
    program = exported("chatglm2", "portable")
    session, engine = stand_in_session(program, max_batch=1, prefill_tokens=100)
    (prompt,) = prompts_for(program, session.capacity - 2)
    with OrtSession(program) as reference, session:
        feeds = session.feeds([prompt])
        np.testing.assert_allclose(session.prefill(feeds), reference.prefill(feeds), atol=2e-5)
    assert engine.calls[:5] == [(1, 100)] * 5
    assert set(engine.calls[5:]) == {(1, 1)}


REFUSED: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    ("chatglm2", {"max_batch": 2}, (4, 4, 4), "3 rows, and the engine was built for 2; build with --max-batch"),
    ("chatglm2", {}, (LENGTH + 1,), f"{LENGTH + 1} tokens, and the engine was built for {LENGTH}"),
    ("glm", {"prefill_tokens": 16}, (40,), "must be read at once, and the engine was built for 16"),
]


@pytest.mark.parametrize(("name", "limits", "lengths", "message"), REFUSED)
def test_what_an_engine_was_not_built_for(
    name: str, limits: dict[str, Any], lengths: tuple[int, ...], message: str, exported: Export
) -> None:
    program = exported(name)
    session, _ = stand_in_session(program, **limits)
    with session, pytest.raises(InputError, match=message):
        session.prefill(session.feeds(prompts_for(program, *lengths)))


def test_refusals_of_the_runtime_are_told(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    program = exported("chatglm2")
    session, _ = stand_in_session(program)
    feeds = session.feeds(prompts_for(program, 4))
    with pytest.raises(InputError, match="decode was called before prefill"):
        session.decode(feeds)
    step = session._prefill_step
    step._profile = replace(step._profile)
    monkeypatch.setattr(StandInContext, "set_input_shape", lambda *_: False)
    with pytest.raises(InputError, match=r"input_ids \[1, 4\] is outside profile prefill, \[1, 1\] to \[1, 64\]"):
        session.prefill(feeds)
    monkeypatch.undo()
    monkeypatch.setattr(StandInContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(EnvironmentMissingError, match="could not run profile prefill"):
        session.prefill(feeds)
    monkeypatch.setattr(StandInEngine, "create_execution_context", lambda *_: None)
    with pytest.raises(EnvironmentMissingError, match="made no execution context"):
        stand_in_session(program)


def test_compiled_kernels_are_kept(exported: Export) -> None:
    """TensorRT-RTX compiles when it first runs; what it compiled is handed to it the next time."""
    program = exported("chatglm2")
    path = Path(program.folder) / KERNELS
    path.unlink(missing_ok=True)
    session, _ = stand_in_session(program, runtime=vendor.TENSORRT_RTX)
    assert session._kernels is not None
    assert session._kernels._cache.loaded is None
    session.close()
    assert path.read_bytes() == b"kernels"
    session, _ = stand_in_session(program, runtime=vendor.TENSORRT_RTX)
    assert session._kernels is not None
    assert session._kernels._cache.loaded == b"kernels"
    session.close()
    path.unlink()


def test_an_engine_is_described_and_measured(exported: Export) -> None:
    """By its runtime and the version it was built by, which is not among a machine's packages."""
    program = exported("chatglm2")
    session, _ = stand_in_session(program)
    with session:
        assert session.describe() == SessionDescription(
            runtime="tensorrt",
            version="0",
            device="cuda",
            dialect="tensorrt",
            dtype="float32",
            cache=Cache.STATIC,
            threads=None,
        )
        assert session.batch_invariance is BatchInvariance.CLOSE
        options = BenchOptions(context=4, new_tokens=6, batch=2)
        facts, config = facts_of(session, options), program.config
    assert facts == {
        "runtime": "tensorrt 0",
        "dialect": "tensorrt",
        "dtype": "float32",
        "device": "cuda",
        "device_memory_bytes": MEMORY_IN_USE,
        "step_weight_bytes": 1020,
        "step_cache_bytes": 2 * config.num_layers * 2 * 7 * config.kv_heads * config.head_dim * 4,
    }
