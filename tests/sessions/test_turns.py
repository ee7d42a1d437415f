"""One user at a time: whoever comes meanwhile is refused or waits, and nobody reads on from another's cache."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import zip_longest
from typing import TypeVar

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.embedded import poems
from glm_export.errors import InputError, SessionBusyError
from glm_export.evaluation.logits import row_logits
from glm_export.generation.generate import Generation, generate_ids, generate_steps
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Logits, Session
from glm_export.sessions.torch import TorchSession
from glm_export.sessions.turns import Turns
from tests.helpers import rtx
from tests.helpers.golden_data import Golden
from tests.helpers.toy_session import ToySession

THREADS, SESSIONS = 32, 8
PROMPTS = [Prompt(ids=(5, 6, 7)), Prompt(ids=(8, 9, 10))]
STOPPING = Stopping(max_new_tokens=6)
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    """The embedded model with one cache for past and present."""
    return api.export("demo", tmp_path_factory.mktemp("turns") / "ort", dialect="ort")


@pytest.fixture(scope="module")
def session(program: OnnxProgram) -> Iterator[Session]:
    with OrtSession(program, threads=1) as made:
        yield made


@pytest.fixture
def toy() -> Iterator[ToySession]:
    with ToySession("shared") as made:
        yield made


def steps_of(session: Session, ids: list[int]) -> Iterator[list[Generation]]:
    return generate_steps(session, [ids], stopping=api.stopping_for(session, 24))


def alike_in_length(session: Session) -> tuple[list[int], list[int]]:
    """Two prompts of as many tokens, with different answers: nothing but the values tells their caches apart."""
    known: dict[int, list[int]] = {}
    for poem in poems():
        ids = session.encode(poem.lines[0])
        if len(ids) in known:
            return known[len(ids)], ids
        known[len(ids)] = ids
    raise AssertionError("every first line has a length of its own")


def elsewhere(work: Callable[[], Result]) -> Result:
    """In another thread, to its end."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def interleaved(session: Session, first: list[int], second: list[int]) -> list[list[int]]:
    """Two streams read in turn, by one thread."""
    pairs = list(zip_longest(steps_of(session, first), steps_of(session, second)))
    return [next(pair[at] for pair in reversed(pairs) if pair[at])[0].ids for at in (0, 1)]


def test_two_streams_in_turn_are_refused_and_would_answer_wrongly(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = alike_in_length(session)
    alone = [generate_ids(session, [ids], stopping=api.stopping_for(session, 24))[0].ids for ids in (first, second)]
    with pytest.raises(SessionBusyError, match="a stream that is not read to its end"):
        interleaved(session, first, second)
    # The control: without turns the same answers are written, and no error is raised.
    monkeypatch.setattr(Turns, "begin", lambda *_, **__: None)
    monkeypatch.setattr(Turns, "enter", lambda *_, **__: None)
    monkeypatch.setattr(Turns, "leave", lambda *_: None)
    assert interleaved(session, first, second) != alone


@pytest.mark.parametrize("count", [1, SESSIONS])
@pytest.mark.parametrize("wait", [False, True])
def test_many_threads_get_right_answers_or_a_refusal(program: OnnxProgram, count: int, wait: bool) -> None:
    asked = [poem.lines[0] for poem in poems() if len(poem.lines) > 1][:THREADS]
    with ExitStack() as opened:
        sessions = [opened.enter_context(OrtSession(program, threads=1)) for _ in range(count)]
        right = [api.generate(sessions[0], line, max_new_tokens=16) for line in asked]
        together = threading.Barrier(THREADS)

        def answer(number: int) -> str | None:
            mine = sessions[number % count]
            together.wait()
            try:
                if not wait:
                    return api.generate(mine, asked[number], max_new_tokens=16)
                with mine.exclusive(wait=True):
                    return api.generate(mine, asked[number], max_new_tokens=16)
            except SessionBusyError:
                return None

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(answer, range(THREADS)))
    assert [answer for answer in answers if answer is not None] == [
        line for line, answer in zip(right, answers, strict=True) if answer is not None
    ]
    assert answers == right if wait else any(answers)


def test_a_call_that_runs_is_not_disturbed(toy: ToySession, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    decode = toy._decode

    def slow(feeds: Feeds) -> Logits:
        inside.set()
        assert go.wait(60)
        return decode(feeds)

    monkeypatch.setattr(toy, "_decode", slow)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(toy.prefill, toy.feeds(PROMPTS[:1]))
        assert inside.wait(60)
        for use in (toy.prefill, toy.decode, toy.run, lambda _: toy.exclusive().__enter__()):
            with pytest.raises(SessionBusyError, match="busy with another thread's work"):
                use(toy.feeds(PROMPTS[1:]))
        go.set()
        running.result()
    assert toy.cache.lengths.tolist() == [3]


def test_a_loop_whose_cache_was_taken_over_is_refused(toy: ToySession) -> None:
    feeds = toy.feeds(PROMPTS[:1])
    toy.prefill(feeds)
    elsewhere(lambda: toy.prefill(toy.feeds(PROMPTS[1:])))
    for use in (
        lambda: toy.decode(feeds.next_step([1], 18)),
        lambda: toy.join(feeds, feeds),
        lambda: toy.select(feeds, [0]),
        lambda: toy.truncate(feeds, 0, 2),
    ):
        with pytest.raises(SessionBusyError, match="holds another user's prompt by now; call prefill again"):
            use()
    toy.prefill(feeds)
    toy.decode(feeds.next_step([1], 18))


def test_a_batch_that_all_rows_have_left_is_anybodys(toy: ToySession) -> None:
    nobody = elsewhere(lambda: left_by_all(toy))
    assert toy.join(nobody, toy.feeds(PROMPTS))[0].batch == 2


def left_by_all(session: Session) -> Feeds:
    feeds = session.feeds(PROMPTS)
    session.prefill(feeds)
    return session.leave(feeds, [0, 1])


def test_a_stream_keeps_the_session_between_its_steps(session: Session) -> None:
    ids, _ = alike_in_length(session)
    stream = steps_of(session, ids)
    next(stream)
    feeds = session.feeds([Prompt(ids=tuple(ids))])
    for use in (session.prefill, session.run, lambda _: api.generate(session, "春"), lambda _: score(session, ids)):
        with pytest.raises(SessionBusyError, match="a stream that is not read to its end"):
            use(feeds)
        with pytest.raises(SessionBusyError, match="busy with another thread's work"):
            elsewhere(lambda use=use: use(feeds))  # type: ignore[misc]
    with pytest.raises(SessionBusyError, match="a stream that is not read to its end"), session.exclusive(wait=True):
        pytest.fail("it waited for itself")
    *_, (row,) = stream
    assert row.ids == generate_ids(session, [ids], stopping=api.stopping_for(session, 24))[0].ids


def score(session: Session, ids: list[int]) -> list[Logits]:
    return list(row_logits(session, [Prompt(ids=tuple(ids))], [1]))


@pytest.mark.parametrize("end", ["closed", "forgotten", "forgotten in a cycle", "its last step was read"])
def test_a_stream_that_is_given_up_leaves_the_session_free(session: Session, end: str) -> None:
    ids, other = alike_in_length(session)
    stream = generate_steps(session, [ids], stopping=STOPPING)
    next(stream)
    if end == "closed":
        stream.close()
    elif end == "forgotten":
        del stream
    elif end == "forgotten in a cycle":
        cycle: list[object] = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
    else:
        for (row,) in stream:
            if row.finish_reason:
                break
    assert len(generate_ids(session, [other], stopping=STOPPING)[0].ids) == STOPPING.max_new_tokens


def test_steps_may_be_read_in_any_thread(session: Session) -> None:
    """A server hands each step to a thread of a pool."""
    ids, _ = alike_in_length(session)
    expected = generate_ids(session, [ids], stopping=STOPPING)[0].ids
    stream = steps_of(session, ids)
    for count in range(1, 1 + STOPPING.max_new_tokens):
        (row,) = elsewhere(lambda: next(stream))
        assert row.ids == expected[:count]


def test_who_waits_comes_next(session: Session) -> None:
    ids, other = alike_in_length(session)
    right = generate_ids(session, [other], stopping=STOPPING)[0].ids
    stream = generate_steps(session, [ids], stopping=STOPPING)
    next(stream)

    def waiting() -> list[int]:
        with session.exclusive(wait=True):
            return generate_ids(session, [other], stopping=STOPPING)[0].ids

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(waiting)
        with pytest.raises(SessionBusyError):
            session.prefill(session.feeds([Prompt(ids=tuple(ids))]))
        *_, (row,) = stream
        assert answer.result() == right
    assert row.ids == generate_ids(session, [ids], stopping=STOPPING)[0].ids


def test_turns_nest_and_end_in_any_order(session: Session) -> None:
    ids, _ = alike_in_length(session)
    feeds = session.feeds([Prompt(ids=tuple(ids))])
    with session.exclusive(), session.exclusive():
        session.prefill(feeds)
        feeds = feeds.next_step([5], session.last_position(feeds))
        session.decode(feeds)
        with pytest.raises(SessionBusyError, match="busy with another thread's work"):
            elsewhere(lambda: api.generate(session, "春"))
        stream = steps_of(session, ids)
        next(stream)
        with pytest.raises(SessionBusyError, match="a stream that is not read"):
            session.decode(feeds)
    # The blocks have ended, the stream within has not.
    with pytest.raises(SessionBusyError):
        session.exclusive().__enter__()
    assert list(stream)
    with pytest.raises(SessionBusyError, match="holds another user's prompt"):
        session.decode(feeds)
    assert elsewhere(lambda: api.generate(session, "春"))


@pytest.mark.parametrize("kind", ["torch", "onnxruntime", "engine"])
def test_a_closed_session_says_so(kind: str, program: OnnxProgram, exported: Callable[..., OnnxProgram]) -> None:
    made: Session
    if kind == "torch":
        made = TorchSession(api.open_checkpoint(Golden("chatglm2").folder))
    elif kind == "onnxruntime":
        made = OrtSession(program, threads=1)
    else:
        rtx.require_installed()
        from tests.helpers.engine_stand_in import stand_in_session

        made = stand_in_session(exported("chatglm2", "tensorrt"))[0]
    feeds = made.feeds(PROMPTS[:1])
    made.prefill(feeds)
    stream = generate_steps(made, [[5, 6]], stopping=STOPPING)
    next(stream)
    made.close()
    made.close()
    for use in (
        lambda: made.prefill(feeds),
        lambda: made.decode(feeds),
        lambda: made.run({}),
        lambda: made.select(feeds, [0]),
        lambda: made.exclusive(wait=True).__enter__(),
        lambda: next(stream),
        lambda: generate_ids(made, [[5, 6]], stopping=STOPPING),
        lambda: made.device_memory() if kind == "engine" else made.describe(),
    ):
        with pytest.raises(InputError, match="the session is closed, and its model is freed; load it again"):
            use()
    with pytest.raises(AttributeError, match="no attribute 'never_there'"):
        _ = made.never_there


def test_closing_waits_for_the_call_that_runs(toy: ToySession, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go, done = threading.Event(), threading.Event(), []
    decode, close = toy._decode, toy._close

    def slow(feeds: Feeds) -> Logits:
        inside.set()
        assert go.wait(60)
        logits = decode(feeds)
        done.append("read")
        return logits

    def freed() -> None:
        done.append("freed")
        close()

    monkeypatch.setattr(toy, "_decode", slow)
    monkeypatch.setattr(toy, "_close", freed)
    feeds = toy.feeds(PROMPTS[:1])
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(toy.prefill, feeds)
        assert inside.wait(60)
        closing = pool.submit(toy.close)
        # From here on nobody else begins, and the model is still there.
        while True:
            try:
                toy.run({})
            except SessionBusyError:
                continue
            except InputError:
                break
        go.set()
        running.result()
        closing.result()
    assert done == ["read", "freed"]
