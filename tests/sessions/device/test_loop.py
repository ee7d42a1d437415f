"""Tokens chosen on the device are those the host chooses; PyTorch on the processor stands for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import NonFiniteError
from glm_export.generation.generate import Generation, generate_ids, generate_steps
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from glm_export.sessions.device import loop as loops
from glm_export.sessions.device.moving_feeds import MovingFeeds
from glm_export.sessions.loop_request import LoopRequest
from glm_export.sessions.onnxruntime import cache as buffers
from glm_export.sessions.onnxruntime.cuda_graph import GraphIds
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from tests.helpers.host_device import HostDevice

Export = Callable[..., OnnxProgram]
REQUESTS = 40
"""For each of five programs: 200 in all."""
PROGRAMS = [
    ("chatglm2", "tensorrt"), ("glm4_moe", "tensorrt"), ("chatglm", "tensorrt"), ("glm", "tensorrt"),
    ("chatglm2", "ort"),
]  # fmt: skip


@contextmanager
def looping(program: OnnxProgram) -> Iterator[Session]:
    """A session that decodes by the loop."""
    if program.dialect == "ort":
        with OrtSession(program, ["CPUExecutionProvider"]) as fused:
            fused.loop_on(HostDevice(), GraphIds())
            yield fused
        return
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
    )
    from tests.helpers.engine_stand_in import stand_in_session

    session, _ = stand_in_session(program)
    with session:
        yield session


@contextmanager
def by_the_host(session: Session) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(session), "chooses_tokens", False)
        yield


def drawn_request(random: np.random.Generator, program: OnnxProgram) -> tuple[list[Prompt], Stopping, Sampling]:
    config = program.config
    rows = int(random.integers(1, 5))
    prompts = [random_prompt(random, int(random.integers(3, 12)), config) for _ in range(rows)]
    stops = random.choice(config.vocab_size, size=int(random.integers(0, config.vocab_size // 4)), replace=False)
    stopping = Stopping(max_new_tokens=int(random.integers(1, 24)), stop_ids=frozenset(stops.tolist()))
    sampling = Sampling(
        temperature=float(random.choice([0.0, 0.0, 0.8, 1.5])), top_k=int(random.choice([0, 1, 7])),
        top_p=float(random.choice([1.0, 0.9, 0.4])), seed=int(random.integers(1 << 30)),
    )  # fmt: skip
    return prompts, stopping, sampling


def told(rows: list[Generation]) -> list[tuple[list[int], str]]:
    return [(row.ids, row.finish_reason) for row in rows]


@pytest.mark.parametrize(("family", "dialect"), PROGRAMS)
def test_the_loop_writes_what_the_host_writes(
    family: str, dialect: str, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that end early, by a stop id or a length; greedy and drawn; recorded after a while, and with little room."""
    program = exported(family, dialect)
    monkeypatch.setattr(loops, "RECORDED_AFTER", 5)
    monkeypatch.setattr(buffers, "FIRST_ROOM", 3)
    random = np.random.default_rng(7)
    early = chosen = 0
    with looping(program) as session:
        for _ in range(REQUESTS):
            prompts, stopping, sampling = drawn_request(random, program)
            found = generate_ids(session, prompts, stopping=stopping, sampling=sampling)
            held = session.cache.lengths.tolist()
            with by_the_host(session):
                expected = generate_ids(session, prompts, stopping=stopping, sampling=sampling)
            assert told(found) == told(expected)
            assert held == session.cache.lengths.tolist()
            early += any(row.finish_reason == "stop" for row in found)
            chosen += sum(len(row.ids) for row in found)
    assert early > 5
    assert chosen > 100


def test_a_program_that_tells_more_logits_than_the_last(exported: Export) -> None:
    """A step has one token a row, and so one row of logits."""
    program = exported("chatglm2", "ort", "recent")
    random = np.random.default_rng(2)
    prompts = [random_prompt(random, length, program.config) for length in (20, 4)]
    with looping(program) as session:
        found = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=12))
        with by_the_host(session):
            assert told(found) == told(generate_ids(session, prompts, stopping=Stopping(max_new_tokens=12)))


@pytest.mark.parametrize(("family", "dialect"), [("chatglm2", "tensorrt"), ("glm", "tensorrt"), ("chatglm2", "ort")])
def test_control_inputs_that_stay_are_noticed(
    family: str, dialect: str, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the ids move on: the same place is written again and again."""
    program = exported(family, dialect)
    random = np.random.default_rng(1)
    prompts = [random_prompt(random, length, program.config) for length in (9, 4)]
    with looping(program) as session:
        expected = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=12))
        monkeypatch.setattr(MovingFeeds, "advance", lambda feeds, ids: feeds._inputs["input_ids"].copy_(ids[:, None]))
        found = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=12))
    assert told(found) != told(expected)


@pytest.mark.parametrize(("family", "dialect"), PROGRAMS)
def test_inputs_move_on_as_the_hosts_do(family: str, dialect: str, exported: Export) -> None:
    """Every array a program is given, step by step, up to a row that waits in its last place."""
    program = exported(family, dialect)
    random = np.random.default_rng(3)
    with looping(program) as session:
        feeds = session.feeds([random_prompt(random, length, program.config) for length in (5, 9, 3)])
        session.prefill(feeds)
        last_position = feeds.columns + 2
        feeds = feeds.next_step([1, 2, 3], last_position)
        if dialect == "ort":
            session.cache.make_room(feeds.columns + 8)
        request = LoopRequest(
            remaining_B=np.full(3, 6), finished_B=np.zeros(3, bool), stop_ids=frozenset(), pad_token_id=0,
            last_position=last_position,
        )  # fmt: skip
        loop = session.token_loop(feeds, request)
        for ids in ([4, 5, 6], [7, 8, 9], [1, 1, 1], [2, 3, 4], [5, 6, 7]):
            expected = session.layout.inputs_without_cache(feeds)
            for name, tensor in loop._step.inputs.items():
                array = expected[name]
                free = tensor.shape[-1] - array.shape[-1] if name == "attention_mask" else 0
                np.testing.assert_array_equal(tensor, np.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, free)]))
            feeds = feeds.next_step(ids, last_position)
            loop._feeds.advance(torch.tensor(ids))


def test_the_host_reads_one_step_behind(exported: Export) -> None:
    """A step runs while the one before is read; none runs that no row wants, but for one when all end early."""
    program = exported("chatglm2", "ort")
    prompt = random_prompt(np.random.default_rng(0), 6, program.config)
    with looping(program) as session:
        kept: list[loops.TokenLoop] = []
        begin = session.token_loop

        def watched(*given: Any) -> loops.TokenLoop:
            loop = begin(*given)
            kept.append(loop)
            return loop

        session.token_loop = watched  # type: ignore[method-assign, assignment]
        steps = generate_steps(session, [prompt], stopping=Stopping(max_new_tokens=6))
        assert [kept[-1].launched if kept else 0 for _ in steps] == [0, 2, 3, 4, 5, 5]
        ids = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=6))[0].ids
        stop = next(at for at in range(2, 6) if ids[at] not in ids[:at])
        generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=6, stop_ids=frozenset({ids[stop]})))
        assert kept[-1].launched == min(stop + 1, 5)
        # The step launched in vain is behind the row's end.
        assert session.cache.lengths.tolist() == [6 + stop]


@pytest.mark.parametrize(
    ("asked", "looped"),
    [
        ({}, True), ({"sampling": Sampling(temperature=1.0, seed=1)}, True),
        ({"sampling": Sampling(repetition_penalty=1.2)}, False),
        ({"stopping": Stopping(max_new_tokens=4, stop_strings=("x",)), "decode": str}, False),
    ],
)  # fmt: skip
def test_what_needs_the_text_is_the_hosts(asked: dict[str, Any], looped: bool, exported: Export) -> None:
    program = exported("chatglm2", "ort")
    prompt = random_prompt(np.random.default_rng(0), 6, program.config)
    with looping(program) as session:
        begun: list[object] = []
        begin = session.token_loop

        def watched(*given: Any) -> loops.TokenLoop:
            begun.append(given)
            return begin(*given)

        session.token_loop = watched  # type: ignore[method-assign, assignment]
        generate_ids(session, [prompt], **{"stopping": Stopping(max_new_tokens=4)} | asked)
        assert bool(begun) == looped


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite")])
def test_logits_that_are_no_numbers_end_it(
    value: float, word: str, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the step and the row where they are, and not in one that has ended."""
    program = exported("chatglm2", "ort")
    random = np.random.default_rng(0)
    prompts = [random_prompt(random, length, program.config) for length in (6, 5)]
    choose = loops.TokenLoop._choose

    def spoilt(loop: loops.TokenLoop) -> None:
        if int(loop._taken) == 2:
            loop._step.logits[1, 0, 3] = value
        choose(loop)

    with looping(program) as session:
        ids = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=8))[1].ids
        monkeypatch.setattr(loops.TokenLoop, "_choose", spoilt)
        with pytest.raises(NonFiniteError, match=rf"step 4, row 1: logits should be numbers, found {word}"):
            generate_ids(session, prompts, stopping=Stopping(max_new_tokens=8))
        stopping = Stopping(max_new_tokens=8, stop_ids=frozenset({ids[1]}))
        assert generate_ids(session, prompts, stopping=stopping)[1].finish_reason == "stop"


def test_what_cannot_be_recorded_is_chosen_all_the_same(
    exported: Export, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = exported("chatglm2", "ort")
    prompt = random_prompt(np.random.default_rng(0), 6, program.config)
    monkeypatch.setattr(loops, "RECORDED_AFTER", 2)

    def refused(_: HostDevice, work: Callable[[], None]) -> None:
        work()
        raise RuntimeError("operation not permitted")

    with looping(program) as session:
        expected = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=8))
        monkeypatch.setattr(HostDevice, "record", refused)
        found = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=8))
    assert told(found) == told(expected)
    assert caplog.messages == ["tokens are chosen without a CUDA graph: operation not permitted"]


class HostOperands(TorchDispatchMode):
    """Operators that are given numbers of the host as tensors, each of which would be copied to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = ("aten.scalar_tensor", "aten._to_copy", "aten.lift_fresh", "aten._local_scalar_dense", "aten.item")
        if str(func).startswith(made):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=1)])
@pytest.mark.parametrize(("family", "dialect"), [("chatglm2", "tensorrt"), ("glm", "tensorrt"), ("chatglm2", "ort")])
def test_choosing_needs_nothing_of_the_host(
    family: str, dialect: str, sampling: Sampling, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it can be captured: nothing is copied from the host's memory or read by it."""
    program = exported(family, dialect)
    prompt = random_prompt(np.random.default_rng(0), 6, program.config)
    choose = loops.TokenLoop._choose
    found: list[str] = []

    def watched(loop: loops.TokenLoop) -> None:
        with HostOperands() as operands:
            choose(loop)
        found.extend(operands.found)

    with looping(program) as session:
        monkeypatch.setattr(loops.TokenLoop, "_choose", watched)
        generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=4), sampling=sampling)
    # A change of dtype is a kernel, whose input and output are the device's.
    assert [name for name in found if not name.startswith("aten._to_copy")] == []
    condition = torch.tensor([True])
    with HostOperands() as operands:
        torch.where(condition, 1, 2)
    assert operands.found  # the control
