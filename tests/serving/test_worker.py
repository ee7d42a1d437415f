"""The thread that drives an engine: what waits, what is too late, what goes wrong, and how it ends."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from glm_export.artifacts.program import OnnxProgram
from glm_export.inputs.prompts import Prompt
from glm_export.serving.engine import Engine
from glm_export.serving.request import Event, Request
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.serving.worker import DrainingError, QueueFullError, Worker
from glm_export.sessions.onnxruntime.session import OrtSession

SECONDS = 60


class Reader:
    """Keeps events; ``hold`` lets the engine's thread stand at the first of them until ``go`` is set."""

    def __init__(self, *, hold: bool = False) -> None:
        self.events: list[Event] = []
        self.first, self.go, self.done = threading.Event(), threading.Event(), threading.Event()
        if not hold:
            self.go.set()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.first.set()
        assert self.go.wait(SECONDS)
        if event.finish_reason is not None:
            self.done.set()

    @property
    def reason(self) -> str | None:
        assert self.done.wait(SECONDS)
        return self.events[-1].finish_reason


@pytest.fixture
def engine(exported: Callable[..., OnnxProgram]) -> Iterator[Engine]:
    with OrtSession(exported("chatglm2", "ort", "last"), ["CPUExecutionProvider"]) as session:
        yield Engine(session, SchedulerOptions(max_rows=1, step_tokens=16))


def asked(key: str, tokens: int = 4) -> Request:
    return Request(key=key, prompt=Prompt(ids=(5, 6, 7)), max_new_tokens=tokens)


def test_as_many_wait_as_may(engine: Engine) -> None:
    held, second, third = Reader(hold=True), Reader(), Reader()
    with Worker(engine, max_waiting=1) as worker:
        worker.submit(asked("a"), held)
        assert held.first.wait(SECONDS)
        worker.submit(asked("b"), second)
        assert worker.waiting == 1
        with pytest.raises(QueueFullError) as full:
            worker.submit(asked("c"), third)
        assert full.value.retry_after_s >= 1
        held.go.set()
        assert (held.reason, second.reason) == ("length", "length")
        worker.submit(asked("c"), third)
        assert third.reason == "length"
    assert worker.counts.requests == {"length": 3}
    assert worker.counts.generated_tokens == 12


def test_what_waits_or_runs_too_long_ends(engine: Engine) -> None:
    """By a clock of the test's own, which may jump."""
    now = [0.0]
    held, waits, stays = Reader(hold=True), Reader(), Reader()
    with Worker(engine, clock=lambda: now[0]) as worker:
        worker.submit(asked("runs", 200), held, run_s=10)
        assert held.first.wait(SECONDS)
        worker.submit(asked("waits"), waits, wait_s=5)
        worker.submit(asked("stays"), stays, wait_s=1000, run_s=1000)
        now[0] = 100.0
        held.go.set()
        assert (held.reason, waits.reason, stays.reason) == ("deadline", "deadline", "length")
    assert not engine.rows.keys


def test_a_clock_that_goes_back_ends_nothing(engine: Engine) -> None:
    now = [1000.0]
    reader = Reader()
    with Worker(engine, clock=lambda: now[0]) as worker:
        now[0] = 0.0
        worker.submit(asked("a"), reader, wait_s=5, run_s=5)
        assert reader.reason == "length"


def test_a_fault_of_a_step_ends_its_requests_and_the_worker_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> list[Event]:
        raise RuntimeError("planted")

    first, second = Reader(), Reader()
    with Worker(engine) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", fault)
            worker.submit(asked("a"), first)
            assert first.reason == "error"
        assert "planted" in str(first.events[-1].error)
        worker.submit(asked("b"), second)
        assert second.reason == "length"
        assert worker.alive


def test_draining_answers_what_was_accepted_and_takes_nothing_new(engine: Engine) -> None:
    held, second, late = Reader(hold=True), Reader(), Reader()
    with Worker(engine) as worker:
        worker.submit(asked("a"), held)
        worker.submit(asked("b"), second)
        assert held.first.wait(SECONDS)
        draining = threading.Thread(target=worker.drain, args=(SECONDS,))
        draining.start()
        while not worker._draining:
            pass
        with pytest.raises(DrainingError):
            worker.submit(asked("c"), late)
        held.go.set()
        draining.join()
        assert (held.reason, second.reason) == ("length", "length")


def test_what_cannot_be_read_is_told_so(engine: Engine) -> None:
    readers = {key: Reader() for key in ("long", "twice", "again")}
    with Worker(engine) as worker:
        worker.submit(Request(key="long", prompt=Prompt(ids=(5,) * 10_000)), readers["long"])
        assert "context" in str(readers["long"].reason and readers["long"].events[-1].error)
        worker.cancel("nobody")
        worker.submit(asked("x", 300), readers["twice"])
        worker.submit(asked("x"), readers["again"])
        assert "taken" in str(readers["again"].reason and readers["again"].events[-1].error)
        worker.cancel("x")
        assert readers["twice"].reason == "cancelled"


def test_leaving_ends_what_is_written(engine: Engine) -> None:
    reader = Reader()
    with Worker(engine) as worker:
        worker.submit(asked("a", 1000), reader)
        assert reader.first.wait(SECONDS)
    assert reader.reason in ("cancelled", "context", "length")
    assert not worker.alive


def test_times_are_of_the_requests(engine: Engine) -> None:
    """By a clock that goes on a second whenever it is asked: every duration is told once, and they add up."""
    ticks = itertools.count()
    readers = [Reader() for _ in range(3)]
    with Worker(engine, clock=lambda: float(next(ticks))) as worker:
        for number, reader in enumerate(readers):
            worker.submit(asked(f"{number}", 3 + number), reader)
        assert [reader.reason for reader in readers] == ["length"] * 3
        counts = worker.counts
    assert (counts.prompt_tokens, counts.generated_tokens) == (9, 12)
    assert counts.first_token_s.count == counts.request_s.count == counts.queue_s.count == 3
    assert counts.between_tokens_s.count == counts.generated_tokens - 3
    # A request whose last event is its last token has no other time.
    assert counts.first_token_s.total + counts.between_tokens_s.total == counts.request_s.total
    assert 3 <= counts.queue_s.total < counts.first_token_s.total


def test_times_of_what_never_had_a_row(engine: Engine) -> None:
    """It waited and ended; it had no first token. What had ended before a fault is not begun again."""
    now = [0.0]
    held, waits = Reader(hold=True), Reader()
    with Worker(engine, clock=lambda: now[0]) as worker:
        worker.submit(asked("runs", 3), held)
        assert held.first.wait(SECONDS)
        worker.submit(asked("waits"), waits, wait_s=5)
        now[0] = 7.0
        held.go.set()
        assert (waits.reason, held.reason) == ("deadline", "length")
        counts = worker.counts
    assert (counts.queue_s.count, counts.first_token_s.count, counts.request_s.count) == (1, 1, 2)
    assert counts.request_s.total == 14.0
    assert counts.prompt_tokens == 3
