"""The plan of each step, whatever comes when: nobody starves, nobody reads twice, budgets hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from glm_export.errors import InputError
from glm_export.serving.scheduler import Change, Scheduler, SchedulerOptions


def stepped(scheduler: Scheduler) -> tuple[Change, list[dict[str, int]]]:
    """A step, after which every row that has read all it knows has a token more."""
    change, calls = scheduler.change_rows(), scheduler.calls()
    for call in calls:
        for key, count in call.items():
            scheduler.advanced(key, count)
            if not scheduler.running[key].unread:
                scheduler.advanced(key, 0, written=1)
    return change, calls


def test_a_prompt_is_read_in_chunks_beside_rows_that_decode() -> None:
    scheduler = Scheduler(SchedulerOptions(max_rows=2, step_tokens=8, chunk_tokens=5))
    scheduler.submit("short", 3)
    scheduler.submit("long", 12)
    assert stepped(scheduler)[1] == [{"short": 3, "long": 5}]
    assert stepped(scheduler)[1] == [{"short": 1, "long": 5}]
    assert stepped(scheduler)[1] == [{"short": 1, "long": 2}]
    assert stepped(scheduler)[1] == [{"short": 1, "long": 1}]


def test_exact_rows_are_called_the_same_in_any_company() -> None:
    """A prompt's pieces are alone in their calls, and as long as they would be were nobody else there."""
    alone = Scheduler(SchedulerOptions(max_rows=4, step_tokens=9, chunk_tokens=5, exact=True))
    alone.submit("long", 13)
    expected = [calls for _ in range(4) for calls in stepped(alone)[1]]
    company = Scheduler(alone.options)
    for key, known, priority in (("a", 3, 1), ("b", 4, 1), ("long", 13, 0), ("urgent", 9, 5)):
        company.submit(key, known, priority=priority)
    found = [call for _ in range(14) for call in stepped(company)[1] if "long" in call]
    assert [call["long"] for call in found[:4]] == [call["long"] for call in expected] == [5, 5, 3, 1]
    assert all(list(call) == ["long"] for call in found[:3])
    assert not company.change_rows().preempted


def test_exact_rows_decode_in_calls_of_their_own() -> None:
    scheduler = Scheduler(SchedulerOptions(max_rows=2, step_tokens=8, chunk_tokens=5, exact=True))
    scheduler.submit("short", 1)
    scheduler.submit("long", 9)
    assert stepped(scheduler)[1] == [{"short": 1}, {"long": 5}]


def test_whole_prompts_come_one_a_step() -> None:
    scheduler = Scheduler(SchedulerOptions(max_rows=3, step_tokens=4, whole_prompts=True))
    for key, known in (("a", 30), ("b", 2), ("c", 40)):
        scheduler.submit(key, known)
    calls = [stepped(scheduler)[1] for _ in range(3)]
    assert calls == [[{"a": 30}], [{"a": 1}, {"b": 2}], [{"a": 1, "b": 1}, {"c": 40}]]


def test_a_higher_priority_takes_the_place_of_the_last_of_a_lower_one() -> None:
    scheduler = Scheduler(SchedulerOptions(max_rows=2, step_tokens=8))
    for key in ("a", "b", "c"):
        scheduler.submit(key, 2)
    stepped(scheduler)
    scheduler.submit("urgent", 2, priority=1)
    change, _ = stepped(scheduler)
    assert (change.preempted, change.admitted) == (("b",), ("urgent",))
    scheduler.forget("urgent")
    # What made way comes before what came later, and is read anew.
    assert scheduler.change_rows().admitted == ("b",)
    assert scheduler.running["b"].read == 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="9 tokens in all"):
        SchedulerOptions(max_rows=8, step_tokens=8)
    scheduler = Scheduler(SchedulerOptions())
    scheduler.submit("a", 1)
    with pytest.raises(InputError, match="already"):
        scheduler.submit("a", 1)


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    max_rows=st.integers(1, 4),
    spare=st.integers(1, 12),
    chunk=st.integers(1, 9),
    exact=st.booleans(),
)
def test_everybody_is_read_once_and_written_to_the_end(
    arrivals: list[tuple[int, int, int, int]], max_rows: int, spare: int, chunk: int, exact: bool
) -> None:
    """Also those that gave up their row; no step is above its budget, and none is for nothing."""
    most = max_rows + spare + (chunk if exact else 0)
    options = SchedulerOptions(max_rows=max_rows, step_tokens=most, chunk_tokens=chunk, exact=exact)
    scheduler, step = Scheduler(options), 0
    done: set[str] = set()
    written = dict.fromkeys(range(len(arrivals)), 0)
    while len(done) < len(arrivals):
        for index, (known, _, priority, at) in enumerate(arrivals):
            if at == step:
                scheduler.submit(str(index), known, priority=priority)
        scheduler.change_rows()
        calls = scheduler.calls()
        assert len(scheduler.running) <= max_rows
        assert sum(sum(call.values()) for call in calls) <= options.step_tokens
        assert calls or not scheduler.running
        seen = [key for call in calls for key in call]
        assert len(seen) == len(set(seen))
        for call in calls:
            for key, count in call.items():
                scheduler.advanced(key, count)
                place = scheduler.running[key]
                assert place.unread >= 0
                if not place.unread:
                    written[int(key)] += 1
                    scheduler.advanced(key, 0, written=1)
                    if written[int(key)] == arrivals[int(key)][1]:
                        scheduler.forget(key)
                        done.add(key)
        step += 1
        assert step < 2000
    assert all(written[index] == arrivals[index][1] for index in written)
