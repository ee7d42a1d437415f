"""Rows that join, leave, are copied and cut back, in every cache there is, against lists of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.kv_cache import KvCache, RowValues
from glm_export.sessions.onnxruntime import cache as ort_caches
from glm_export.sessions.session import Logits
from tests.helpers.toy_session import BEGINNING, CAPACITY, KINDS, ToySession, expected

MOST_ROWS = 5
TOKENS = st.integers(3, 250)
PROMPTS = st.builds(
    lambda ids, context, mask: Prompt(
        ids=tuple(ids), context_length=min(context, len(ids) - 1), mask_position=min(mask, context, len(ids) - 1)
    ),
    st.lists(TOKENS, min_size=2, max_size=6), st.integers(1, 4), st.integers(0, 4),
)  # fmt: skip
LAST_POSITION = 255


@dataclass
class Row:
    """What a row should be: a prompt, and the ids that stand in the cache."""

    prompt: Prompt
    ids: list[int] = field(default_factory=list)

    def copy(self) -> Row:
        return Row(self.prompt, list(self.ids))


class Rows(RuleBasedStateMachine):
    """Any order of operations; every call's answer is checked, and what every row holds behind every operation."""

    def __init__(self, kind: str, begun: Sequence[tuple[int, int, int]] = ()) -> None:
        super().__init__()
        self.session = ToySession(kind, begun)
        self.begun = begun
        self.prefix = self.session.config.prefix_mask
        self.rows: list[Row] = []
        self.kept: tuple[RowValues[Any], Row] | None = None

    @initialize(prompts=st.lists(PROMPTS, min_size=1, max_size=3))
    def start(self, prompts: list[Prompt]) -> None:
        self.feeds: Feeds = self.session.feeds(prompts)
        self.read(self.session.prefill(self.feeds), self.feeds, prompts)
        self.rows = [Row(prompt, list(prompt.ids)) for prompt in prompts]
        self.check()

    def read(self, logits_BSV: np.ndarray, feeds: Feeds, prompts: list[Prompt]) -> None:
        wanted = [self.wanted(prompt, prompt.ids) for prompt in prompts]
        assert feeds.last_logits(logits_BSV).tolist() == [list(pair) for pair in wanted]

    def wanted(self, prompt: Prompt, ids: Sequence[int]) -> tuple[int, int]:
        """The answer, and how many tokens are seen."""
        return expected(prompt, ids, prefix=self.prefix, begun=self.begun), self.length(ids)

    def length(self, ids: Sequence[int]) -> int:
        """Of a row in the cache."""
        return len(self.begun) + len(ids)

    def check(self) -> None:
        cache = self.session.cache
        assert cache.lengths.tolist() == [self.length(row.ids) for row in self.rows]
        assert self.feeds.row_lengths.tolist() == cache.lengths.tolist()
        for index, row in enumerate(self.rows):
            values = cache.row(index)
            assert values.length == self.length(row.ids)
            for place, array in enumerate(values.arrays[::2]):
                assert (np.asarray(array)[:, :, 0] == np.array(row.ids) + 100_000 * place).all()

    def room_for(self, tokens: int) -> bool:
        return all(self.length(row.ids) + tokens <= CAPACITY for row in self.rows)

    @precondition(lambda self: self.rows and self.room_for(1))
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(TOKENS, min_size=len(self.rows), max_size=len(self.rows)))
        self.feeds = self.feeds.next_step(ids, LAST_POSITION)
        for row, token in zip(self.rows, ids, strict=True):
            row.ids.append(token)
        found = self.feeds.last_logits(self.session.decode(self.feeds)).tolist()
        wanted = [self.wanted(row.prompt, row.ids) for row in self.rows]
        assert found == [list(pair) for pair in wanted]
        self.check()

    @precondition(lambda self: len(self.rows) < MOST_ROWS)
    @rule(prompt=PROMPTS, more=st.booleans())
    def join(self, prompt: Prompt, more: bool) -> None:
        prompts = [prompt, replace(prompt, ids=prompt.ids[::-1])][: 1 + (more and len(self.rows) < MOST_ROWS - 1)]
        new = self.session.feeds(prompts)
        self.feeds, logits = self.session.join(self.feeds, new)
        self.read(logits, new, prompts)
        self.rows += [Row(prompt, list(prompt.ids)) for prompt in prompts]
        self.check()

    @precondition(lambda self: not self.prefix and len(self.rows) < MOST_ROWS)
    @rule()
    def join_empty(self) -> None:
        prompt = Prompt(ids=(5,))
        self.session.cache.join([RowValues(length=0)])
        self.feeds = self.feeds.join(self.session.feeds([prompt]).truncate(0, len(self.begun)))
        self.rows.append(Row(prompt))
        self.check()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.kept = (self.session.cache.row(row), self.rows[row].copy())

    @precondition(lambda self: self.kept is not None and len(self.rows) < MOST_ROWS)
    @rule(data=st.data(), more=st.lists(TOKENS, min_size=1, max_size=3))
    def join_given(self, data: st.DataObject, more: list[int]) -> None:
        assert self.kept is not None
        values, row = self.kept
        least = row.prompt.context_length if self.prefix else 0
        first = data.draw(st.integers(least, min(len(row.ids), CAPACITY - self.length(more))))
        prompt = replace(row.prompt, ids=(*row.ids[:first], *more))
        new = self.session.feeds([prompt])
        self.feeds, logits = self.session.join(self.feeds, new, values.first(len(self.begun) + first))
        assert logits[0, -1].tolist() == list(self.wanted(prompt, prompt.ids))
        self.rows.append(Row(prompt, list(prompt.ids)))
        self.check()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.integers(0, len(self.rows) - 1), min_size=1))
        self.feeds = self.session.leave(self.feeds, gone)
        self.rows = [row for index, row in enumerate(self.rows) if index not in gone]
        self.check()

    @precondition(lambda self: self.rows and len(self.rows) < MOST_ROWS)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        most = MOST_ROWS - len(self.rows)
        chosen = data.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=most))
        self.feeds = self.session.copy_rows(self.feeds, chosen)
        self.rows += [self.rows[row].copy() for row in chosen]
        self.check()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=MOST_ROWS))
        self.feeds = self.session.select(self.feeds, chosen)
        self.rows = [self.rows[row].copy() for row in chosen]
        self.check()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.rows) - 1))
        row = self.rows[index]
        least = row.prompt.context_length if self.prefix else 0
        length = data.draw(st.integers(least, len(row.ids)))
        self.feeds = self.session.truncate(self.feeds, index, len(self.begun) + length)
        row.ids = row.ids[:length]
        self.check()


QUICK = settings(max_examples=40, stateful_step_count=20, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a shared buffer is outgrown often."""
    monkeypatch.setattr(ort_caches, "FIRST_ROOM", 2)


def fails(kind: str, begun: Sequence[tuple[int, int, int]] = ()) -> bool:
    """Whether a defect is found; it is not made small, nor kept for another time."""
    found = settings(QUICK, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    try:
        run_state_machine_as_test(lambda: Rows(kind, begun), settings=found)
    except (AssertionError, InputError):
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_operations(kind: str) -> None:
    run_state_machine_as_test(lambda: Rows(kind), settings=QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_operations_behind_a_beginning(kind: str) -> None:
    """As where nothing stands before a row."""
    run_state_machine_as_test(lambda: Rows(kind, BEGINNING), settings=QUICK)


def _cut_without_moving(cache: KvCache[Any], row: int, length: int) -> None:
    cache.lengths = cache.lengths.copy()
    cache.lengths[row] = length


SELECT = KvCache.select
PLANTED: dict[str, tuple[str, Any, set[str]]] = {
    "a copy of the wrong row": ("select", lambda cache, rows: SELECT(cache, [*rows[:1], *rows[:-1]]), set(KINDS)),
    "rows out of order": ("select", lambda cache, rows: SELECT(cache, rows[::-1]), set(KINDS)),
    "lengths cut, and nothing moved": (
        "truncate", _cut_without_moving, {kind for kind in KINDS if "shared" not in kind and "static" not in kind}
    ),
    "captured steps not told": (
        "_move", lambda cache: None, {kind for kind in KINDS if "shared" in kind or "static" in kind}
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", PLANTED)
def test_controls_of_any_order(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each defect shows in every kind of cache that can have it, and in no other."""
    name, planted, kinds = PLANTED[defect]
    monkeypatch.setattr(KvCache, name, planted)
    assert {kind for kind in KINDS if fails(kind)} == kinds


def test_control_of_a_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is forgotten when rows are laid out anew."""
    beginnings = KvCache._beginnings
    monkeypatch.setattr(
        KvCache, "_beginnings", lambda cache, index, rows: beginnings(cache, index, rows) if not cache.rows else []
    )
    assert all(fails(kind, BEGINNING) for kind in KINDS)


@pytest.fixture(params=KINDS)
def started(request: pytest.FixtureRequest) -> ToySession:
    """With rows of 4, 2 and 3 tokens."""
    session = ToySession(request.param)
    session.prefill(session.feeds(PROMPTS_GIVEN))
    return session


PROMPTS_GIVEN = [Prompt(ids=ids, context_length=1) for ids in ((3, 4, 5, 6), (7, 8), (9, 10, 11))]


def test_a_call_must_go_on_from_what_is_held(started: ToySession) -> None:
    """Feeds and cache that were not changed alike are refused before anything is written."""
    feeds, cache = started.feeds(PROMPTS_GIVEN), started.cache
    with pytest.raises(InputError, match="it says what the cache holds; decode what its next_step gives"):
        started.decode(feeds.select([0, 1, 2]))
    with pytest.raises(
        InputError, match="the call is of 2 rows, and the cache holds 3; change cache and feeds together"
    ):
        started.decode(feeds.leave([0]).next_step([1, 2], LAST_POSITION))
    longer = started.feeds([replace(prompt, ids=(*prompt.ids, 1)) for prompt in PROMPTS_GIVEN])
    with pytest.raises(InputError, match="goes on behind 5 tokens of row 0, which holds 4"):
        started.decode(longer.next_step([1, 2, 3], LAST_POSITION))
    for change in (
        lambda: started.leave(longer, [0]), lambda: started.truncate(longer, 0, 1), lambda: started.join(longer, feeds),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"rows of \[5, 3, 4\] tokens, and the cache holds \[4, 2, 3\]"):
            change()
    assert cache.lengths.tolist() == [4, 2, 3]
    cache.clear()
    with pytest.raises(InputError, match="decode was called before prefill"):
        started.decode(feeds.next_step([1, 2, 3], LAST_POSITION))


def test_only_own_lengths_may_begin_earlier(started: ToySession) -> None:
    """There the next token is written over the old one; elsewhere it would stand behind it."""
    feeds = started.feeds(PROMPTS_GIVEN).truncate(0, 2).next_step([50, 51, 52], LAST_POSITION)
    if not started.signature.own_lengths:
        with pytest.raises(InputError, match="goes on behind 2 tokens of row 0, which holds 4"):
            started.decode(feeds)
        return
    logits = started.decode(feeds)
    assert logits[0, 0].tolist() == [expected(PROMPTS_GIVEN[0], [3, 4, 50], prefix=started.config.prefix_mask), 3]
    assert started.cache.lengths.tolist() == [3, 3, 4]


def test_what_cannot_be(started: ToySession) -> None:
    cache = started.cache
    for operation in (
        lambda: cache.row(3), lambda: cache.select([0, 3]), lambda: cache.leave([3]), lambda: cache.truncate(3, 0)
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"rows \[3\] are not there; the batch has 3"):
            operation()
    with pytest.raises(InputError, match="row 1 has 2 tokens and cannot be cut back to 3"):
        cache.truncate(1, 3)
    with pytest.raises(InputError, match="the row has 2 tokens, and the first 3 are wanted"):
        cache.row(1).first(3)
    assert cache.lengths.tolist() == [4, 2, 3]


def test_a_copy_is_its_own(started: ToySession) -> None:
    """What was taken out is not what later steps write, and can be joined twice."""
    kept = started.cache.row(0)
    before = [np.array(array) for array in kept.arrays]
    feeds = started.truncate(started.feeds(PROMPTS_GIVEN), 0, 1)
    started.decode(feeds.next_step([50, 51, 52], LAST_POSITION))
    for array, was in zip(kept.arrays, before, strict=True):
        np.testing.assert_array_equal(np.array(array), was)
    started.cache.join([kept, kept])
    assert started.cache.lengths.tolist() == [2, 3, 4, 4, 4]
    for row in (3, 4):
        for array, was in zip(started.cache.row(row).arrays, before, strict=True):
            np.testing.assert_array_equal(np.array(array), was)


def test_a_prompt_that_cannot_be_read_leaves_the_batch_alone(
    started: ToySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = started.feeds(PROMPTS_GIVEN)

    def refused(_: Feeds) -> Logits:
        raise InputError("no")

    monkeypatch.setattr(started, "prefill", refused)
    with pytest.raises(InputError, match="no"):
        started.join(feeds, feeds)
    monkeypatch.undo()
    feeds = feeds.next_step([50, 51, 52], LAST_POSITION)
    wanted = [
        expected(prompt, [*prompt.ids, token], prefix=started.config.prefix_mask)
        for prompt, token in zip(PROMPTS_GIVEN, (50, 51, 52), strict=True)
    ]
    assert started.decode(feeds)[:, 0, 0].tolist() == wanted


def test_where_memory_is_short_nothing_half_done_is_left(started: ToySession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are laid out one after another; when one fails, those of before and new ones cannot stay together."""
    hold, feeds = type(started.cache)._hold, started.feeds(PROMPTS_GIVEN)

    def short(cache: Any, index: int, *rest: Any) -> None:
        if index == 2:
            raise EnvironmentMissingError("the GPU has 0.00 GB free")
        hold(cache, index, *rest)

    monkeypatch.setattr(type(started.cache), "_hold", short)
    with pytest.raises(EnvironmentMissingError, match=r"0\.00 GB free"):
        started.copy_rows(feeds, [0])
    monkeypatch.undo()
    assert started.cache.rows == 0
    with pytest.raises(InputError, match="decode was called before prefill"):
        started.decode(feeds.next_step([1, 2, 3], LAST_POSITION))
    started.prefill(feeds)
    assert started.cache.lengths.tolist() == [4, 2, 3]


@pytest.mark.parametrize("kind", ["static", "static, prefix", "shared", "engine, growing"])
def test_no_row_is_longer_than_the_cache_can_be(kind: str) -> None:
    session = ToySession(kind)
    with pytest.raises(
        InputError, match=f"{CAPACITY + 1} tokens are wanted, .* {CAPACITY}: 1 too many; shorten the prompt"
    ):
        session.prefill(session.feeds([Prompt(ids=tuple(range(CAPACITY + 1)), context_length=1)]))


def test_rows_go_and_the_shared_columns_go_with_them() -> None:
    """A growing cache is as wide as its longest row, and no wider."""
    session = ToySession("growing")
    feeds = session.feeds(PROMPTS_GIVEN)
    session.prefill(feeds)
    assert session.cache.columns == 4
    feeds = session.leave(feeds, [0])
    assert (session.cache.columns, feeds.columns) == (3, 3)
    feeds = session.truncate(feeds, 1, 1)
    assert (session.cache.columns, feeds.columns) == (2, 2)


def test_what_moves_and_what_stays() -> None:
    """A captured step survives calls and, where each row begins at column 0, rows cut back; nothing else."""
    for kind in ("shared", "static", "engine, static"):
        session = ToySession(kind)
        feeds = session.feeds(PROMPTS_GIVEN)
        session.prefill(feeds)
        moved = session.moved
        feeds = session.truncate(feeds, 0, 2).next_step([1, 2, 3], LAST_POSITION)
        session.decode(feeds)
        assert session.moved == moved
        for change in (
            lambda feeds, session=session: session.leave(feeds, [2]),
            lambda feeds, session=session: session.copy_rows(feeds, [0]),
            lambda feeds, session=session: session.join(feeds, session.feeds(PROMPTS_GIVEN[:1]))[0],
        ):
            moved = session.moved
            feeds = change(feeds)
            assert session.moved > moved
