"""Many requests at once: each gets what it gets alone, over every kind of cache, whatever comes, goes or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from glm_export.serving.engine import Engine
from glm_export.serving.request import Event, Request
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.sessions.kv_cache import RowValues
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from tests.helpers.golden_data import Golden

CPU = ["CPUExecutionProvider"]
SMALL = SchedulerOptions(max_rows=3, step_tokens=8, chunk_tokens=4)


@pytest.fixture(scope="module", params=["ort", "onnx", "pytorch", "prefix", "prefix, ort", "static"])
def session(request: pytest.FixtureRequest, exported: Callable[..., OnnxProgram]) -> Iterator[Session]:
    if request.param == "pytorch":
        made: Session = api.load_session(Golden("chatglm2").folder)
    else:
        family = "glm" if "prefix" in request.param else "chatglm2"
        dialect = {"static": "tensorrt", "prefix": "onnx", "prefix, ort": "ort"}.get(request.param, request.param)
        made = OrtSession(exported(family, dialect, "last" if dialect != "onnx" else "all"), CPU)
    with made:
        yield made


def prompt_of(session: Session, seed: int, length: int) -> Prompt:
    return random_prompt(np.random.default_rng(seed), length, session.config)


def alone(session: Session, request: Request) -> tuple[list[int], str]:
    """What one user gets."""
    stopping = Stopping(max_new_tokens=request.max_new_tokens, stop_ids=request.stop_ids)
    (row,) = generate_ids(session, [request.prompt], stopping=stopping, sampling=request.sampling)
    return row.ids, row.finish_reason


def drained(engine: Engine, limit: int = 500) -> list[Event]:
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
        limit -= 1
        assert limit, "the engine does not come to an end"
    return events


def answers(events: list[Event]) -> dict[str, tuple[list[int], str]]:
    ids: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for event in events:
        assert event.key not in reasons, "an event behind the last"
        ids.setdefault(event.key, []).extend([event.token] if event.token is not None else [])
        if event.finish_reason is not None:
            reasons[event.key] = event.finish_reason
    return {key: (ids[key], reasons[key]) for key in reasons}


SEEDS, TENANTS = st.sampled_from([None, 1, 2]), st.sampled_from(["", "a", "b"])
ASKED = st.tuples(
    st.integers(0, 5), st.integers(2, 20), st.integers(1, 7), st.integers(0, 2), st.integers(0, 10), SEEDS, TENANTS
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(ASKED, min_size=1, max_size=7), exact=st.booleans(), prefixes=st.booleans())
def test_each_gets_what_it_gets_alone(
    session: Session, asked: list[tuple[int, int, int, int, int, int | None, str]], exact: bool, prefixes: bool
) -> None:
    requests = [
        Request(
            key=str(index),
            prompt=prompt_of(session, seed, length),
            max_new_tokens=most,
            priority=priority,
            tenant=tenant,
            stop_ids=frozenset({7, 11}),
            sampling=Sampling() if drawn is None else Sampling(temperature=0.8, top_p=0.9, seed=drawn),
        )
        for index, (seed, length, most, priority, _, drawn, tenant) in enumerate(asked)
    ]
    expected = {request.key: alone(session, request) for request in requests}
    engine = Engine(session, replace(SMALL, exact=exact), prefix_bytes=1 << 20 if prefixes else 0)
    events: list[Event] = []
    for step in range(11):
        for request, (*_, at, _, _) in zip(requests, asked, strict=True):
            if at == step:
                engine.submit(request)
        events += engine.step()
    assert answers(events + drained(engine)) == expected
    assert not engine.rows.keys


def test_a_row_that_is_cancelled_is_free_at_once(session: Session) -> None:
    requests = [Request(key=str(i), prompt=prompt_of(session, i, 5), max_new_tokens=6) for i in range(5)]
    expected = {request.key: alone(session, request) for request in requests}
    engine = Engine(session, SMALL)
    for request in requests:
        engine.submit(request)
    events = engine.step()
    engine.cancel("1")
    engine.cancel("4")
    engine.cancel("nobody")
    events += engine.step()
    assert "3" in engine.scheduler.running
    found = answers(events + drained(engine))
    assert found == {key: expected[key] for key in ("0", "2", "3")}


def test_a_call_that_fails_ends_its_rows_and_nobody_elses(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(key=str(i), prompt=prompt_of(session, i, 5), max_new_tokens=5) for i in range(4)]
    expected = {request.key: alone(session, request) for request in requests}
    engine = Engine(session, SMALL)
    for request in requests[:3]:
        engine.submit(request)
    events = engine.step()
    whole = engine.rows.advance

    def failing(tokens: dict[str, list[int]], prompts: dict[str, Prompt]) -> object:
        if "1" in tokens:
            raise RuntimeError("out of memory")
        return whole(tokens, prompts)

    monkeypatch.setattr(engine.rows, "advance", failing)
    engine.submit(requests[3])
    events += drained(engine)
    found = answers(events)
    assert found["1"][1] == "error"
    assert "out of memory" in str(next(event.error for event in events if event.key == "1" and event.error))
    assert found["3"] == expected["3"]
    for key in ("0", "2"):
        assert found[key] == expected[key] or found[key][1] == "error"


def test_exact_rows_have_the_same_bits_alone_and_among_31_others(exported: Callable[..., OnnxProgram]) -> None:
    """The control: the same prompts in other pieces move last bits, which is what company does to an engine's steps."""
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        watched = [Request(key=f"w{i}", prompt=prompt_of(session, i, 21 + i), max_new_tokens=5) for i in range(3)]
        watched = [replace(request, top_logprobs=4) for request in watched]
        others = [Request(key=str(i), prompt=prompt_of(session, 50 + i, 5 + i), max_new_tokens=6) for i in range(31)]

        def told(chunk: int, company: list[Request]) -> dict[str, list[object]]:
            options = SchedulerOptions(max_rows=32, step_tokens=40, chunk_tokens=chunk, exact=True)
            engine = Engine(session, options)
            found: dict[str, list[object]] = {request.key: [] for request in watched}
            for request in [*company[:20], *watched, *company[20:]]:
                engine.submit(request)
            for event in drained(engine):
                if event.key in found:
                    found[event.key].append((event.token, event.logprobs))
            return found

        expected: dict[str, list[object]] = {}
        for request in watched:
            engine = Engine(session, SchedulerOptions(max_rows=32, step_tokens=40, chunk_tokens=8, exact=True))
            engine.submit(request)
            expected[request.key] = [(event.token, event.logprobs) for event in drained(engine)]
        assert told(8, others) == expected
        assert told(1, others) != expected


def test_prompts_that_begin_alike_are_read_once_a_tenant(exported: Callable[..., OnnxProgram]) -> None:
    """A tenant's row never begins with what another's read."""
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        system = prompt_of(session, 9, 30).ids
        engine = Engine(session, SMALL)
        seen = {}
        for turn, tenant in enumerate(["a", "a", "b", "b", "a"]):
            request = Request(key=str(turn), tenant=tenant, prompt=Prompt(ids=(*system, 5 + turn)), max_new_tokens=3)
            expected = alone(session, request)
            engine.rows.clear()
            engine.submit(request)
            events = drained(engine)
            assert answers(events)[request.key] == expected
            seen[turn] = events[0].cached_tokens
        assert seen == {0: 0, 1: 30, 2: 0, 3: 30, 4: 30}


def test_nobody_reads_anothers_values_under_eviction(exported: Callable[..., OnnxProgram]) -> None:
    """Canaries: what is kept of one tenant is spoilt, so a row that begins with any of it writes another text.

    The control: the tenant's own rows do.
    """
    draw = np.random.default_rng(0)
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        systems = [prompt_of(session, seed, 30).ids for seed in range(3)]
        requests = [
            Request(
                key=str(turn),
                tenant=["spoilt", "b", "c"][int(draw.integers(3))],
                prompt=Prompt(ids=(*systems[int(draw.integers(3))], 5 + int(draw.integers(9)))),
                max_new_tokens=4,
            )
            for turn in range(60)
        ]
        expected = {request.key: alone(session, request) for request in requests}
        engine = Engine(session, SMALL)
        kept = engine.prefixes
        assert kept is not None
        put = kept.put

        def spoilt(tenant: str, tokens: Sequence[int], values: RowValues[np.ndarray]) -> None:
            if tenant == "spoilt":
                values = replace(values, arrays=tuple(np.full_like(array, 3.0) for array in values.arrays))
            put(tenant, tokens, values)
            # Room for four rows of nine.
            kept.max_bytes = kept.max_bytes if len(kept) < 5 else min(kept.max_bytes, kept.bytes * 4 // 5)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept, "put", spoilt)
            events: list[Event] = []
            for request in requests:
                engine.submit(request)
                if draw.random() < 0.6:
                    events += engine.step()
            found = answers(events + drained(engine))
        assert kept.hits > 100
        assert len(kept) <= 5
        other = {request.key for request in requests if found[request.key] != expected[request.key]}
        assert other
        assert {requests[int(key)].tenant for key in other} == {"spoilt"}


def test_a_prompt_that_was_read_but_for_its_last_token(session: Session) -> None:
    """It joins where prompts come alone, too, beside a row that decodes; so does a prompt of one token."""
    if session.config.prefix_mask:
        pytest.skip("prompts of families that fill blanks are read whole")
    engine = Engine(session, SMALL)
    again = Request(key="first", prompt=prompt_of(session, 8, 30), max_new_tokens=3)
    short = Request(key="short", prompt=prompt_of(session, 9, 1), max_new_tokens=3)
    beside = Request(key="beside", prompt=prompt_of(session, 7, 5), max_new_tokens=12)
    expected = {request.key: alone(session, request) for request in (again, short, beside)}
    engine.rows.clear()
    engine.submit(again)
    events = drained(engine)
    engine.submit(beside)
    for _ in range(3):
        events += engine.step()
    engine.submit(replace(again, key="again"))
    engine.submit(short)
    found = answers(events + drained(engine))
    assert found == expected | {"again": expected["first"]}


def test_a_store_that_is_full_gives_up_the_oldest(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        engine = Engine(session, SMALL, prefix_bytes=1)
        for key in ("one", "two"):
            engine.submit(Request(key=key, prompt=prompt_of(session, 4, 30), max_new_tokens=2))
            assert drained(engine)[0].cached_tokens == 0
        assert engine.prefixes is not None
        assert (len(engine.prefixes), engine.prefixes.bytes) == (0, 0)


@pytest.mark.parametrize("logits", ["all", "last", "recent"])
def test_log_probabilities_of_prompt_and_answer(logits: str, exported: Callable[..., OnnxProgram]) -> None:
    """Those of a softmax over the whole prompt, whether the program tells all of it or its last tokens alone."""
    with OrtSession(exported("chatglm2", "ort", "all"), CPU) as whole:
        prompt = prompt_of(whole, 3, 30)
        rows = whole.prefill(whole.feeds([prompt]))[0].astype(np.float64)
        logs = (
            rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
        )
    with OrtSession(exported("chatglm2", "ort", logits), CPU) as session:
        engine = Engine(session, replace(SMALL, chunk_tokens=25, step_tokens=28))
        engine.submit(Request(key="a", prompt=prompt, max_new_tokens=1, top_logprobs=2, prompt_logprobs=True))
        (event,) = drained(engine)
        told = event.prompt_logprobs
        assert [one.token for one in told] == list(prompt.ids[1:])
        np.testing.assert_allclose([one.logprob for one in told], logs[np.arange(29), prompt.ids[1:]], atol=1e-4)
        assert event.logprobs is not None
        best = np.argsort(-logs[29])[:2]
        assert [token for token, _ in event.logprobs.top] == best.tolist()
        assert event.logprobs.token == event.token == best[0]


def test_what_was_asked_of_a_token(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        prompt = prompt_of(session, 3, 9)
        plain, _ = alone(session, Request(key="", prompt=prompt, max_new_tokens=3))

        class Even:
            accepted: list[int] = []  # noqa: RUF012 - one use

            @property
            def allowed(self) -> np.ndarray:
                return np.arange(session.config.vocab_size) % 2 == 0

            def accept(self, token: int) -> None:
                self.accepted.append(token)

        engine = Engine(session, SMALL)
        engine.submit(
            Request(key="banned", prompt=prompt, max_new_tokens=3, sampling=Sampling(logit_bias={plain[0]: -100}))
        )
        engine.submit(Request(key="even", prompt=prompt, max_new_tokens=4, matcher=Even()))
        engine.submit(Request(key="ends", prompt=prompt, max_new_tokens=9, ends=lambda token: token == plain[1]))
        engine.submit(Request(key="none", prompt=prompt, max_new_tokens=0))
        stops = frozenset(plain[:2])
        engine.submit(Request(key="stops", prompt=prompt, max_new_tokens=6, stop_ids=stops))
        engine.submit(Request(key="later", prompt=prompt, max_new_tokens=6, stop_ids=stops, min_new_tokens=4))
        found = answers(drained(engine))
        assert plain[0] not in found["banned"][0][:1]
        assert all(token % 2 == 0 for token in found["even"][0])
        assert Even.accepted == found["even"][0]
        assert found["ends"] == (plain[:2], "stop")
        assert found["none"] == ([], "length")
        assert found["stops"] == ([], "stop")
        assert len(found["later"][0]) >= 4
        assert not stops & set(found["later"][0])


def test_what_is_refused(exported: Callable[..., OnnxProgram], tmp_path: Path) -> None:
    with OrtSession(exported("chatglm2", "onnx", "all"), CPU) as session:
        engine = Engine(session, SMALL)
        for ids, said in (((), "at least one token"), ((10**9,), "outside the vocabulary"), ((5,) * 5000, "context")):
            with pytest.raises(InputError, match=said):
                engine.submit(Request(key="a", prompt=Prompt(ids=ids)))
        assert engine.idle
    program = api.export(Golden("chatglm2").folder, tmp_path / "program", dialect="ort", recipe="int8-dynamic")
    with OrtSession(program, CPU) as session:
        with pytest.raises(InputError, match="int8-token"):
            Engine(session, SMALL)
        engine = Engine(session, SchedulerOptions(max_rows=1))
        engine.submit(Request(key="a", prompt=prompt_of(session, 1, 4), max_new_tokens=2))
        assert answers(drained(engine))["a"][1] == "length"
