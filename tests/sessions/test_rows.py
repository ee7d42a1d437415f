"""Rows that join, leave, are copied and cut back between steps write what each writes alone, in every session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from glm_export.sessions.kv_cache import KvCache, RowValues
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from tests.helpers import rtx
from tests.helpers.engine_stand_in import stand_in_session
from tests.helpers.golden_data import Golden

BOUND = 2e-5
"""Largest difference, as a share of the largest logit: padding moves what is summed, float32."""
CAUSAL, PREFIX = "chatglm2", "glm"
SESSIONS = [
    (CAUSAL, "torch"), (CAUSAL, "onnx"), (CAUSAL, "ort"), (CAUSAL, "tensorrt"),
    (CAUSAL, "engine portable"), (CAUSAL, "engine tensorrt"),
    (PREFIX, "torch"), (PREFIX, "ort"), (PREFIX, "tensorrt"), (PREFIX, "engine tensorrt"),
]  # fmt: skip
BIT_EQUAL = {"ort", "tensorrt", "engine tensorrt"}
"""Where rows have columns of their own a step gives a row the same bits in any company."""
Open = Callable[[str, str], Session]


class Truth:
    """PyTorch reading one row whole; every session of a model asks for the same rows."""

    def __init__(self, name: str) -> None:
        self._session = TorchSession(api.open_checkpoint(Golden(name).folder))
        self._known: dict[Prompt, np.ndarray] = {}

    def __call__(self, row: Prompt) -> np.ndarray:
        """Logits behind the last id, ``[V]``."""
        if row not in self._known:
            self._known[row] = self._session.prefill(self._session.feeds([row]))[0, -1]
        return self._known[row]


@pytest.fixture(scope="module")
def truths() -> dict[str, Truth]:
    """By model."""
    return {name: Truth(name) for name in (CAUSAL, PREFIX)}


@pytest.fixture(scope="module")
def load(exported: Callable[..., OnnxProgram]) -> Iterator[Open]:
    """A session of a golden model, by its dialect; each made once."""
    made: dict[tuple[str, str], Session] = {}

    def open_one(name: str, kind: str) -> Session:
        if kind == "torch":
            return TorchSession(api.open_checkpoint(Golden(name).folder))
        program = exported(name, kind.split()[-1])
        return stand_in_session(program, max_batch=5)[0] if "engine" in kind else OrtSession(program, threads=1)

    def load(name: str, kind: str) -> Session:
        if "engine" in kind:
            rtx.require_installed()
        if (name, kind) not in made:
            made[name, kind] = open_one(name, kind)
        return made[name, kind]

    yield load
    for session in made.values():
        session.close()


@dataclass
class Row:
    """A prompt, and what was written behind it; ``alone``: in single steps behind a prompt read whole."""

    prompt: Prompt
    written: list[int] = field(default_factory=list)
    alone: bool = True

    @property
    def whole(self) -> Prompt:
        return replace(self.prompt, ids=(*self.prompt.ids, *self.written))

    def copy(self) -> Row:
        return Row(self.prompt, list(self.written), self.alone)


class Batch:
    """A session's batch and the rows it should hold; every step is compared with each row read alone by PyTorch."""

    def __init__(self, session: Session, truth: Truth) -> None:
        self.session, self.truth = session, truth
        self.rows: list[Row] = []
        self.steps: list[tuple[Row, np.ndarray]] = []

    def start(self, *prompts: Prompt) -> None:
        self.rows = [Row(prompt) for prompt in prompts]
        self.feeds: Feeds = self.session.feeds(prompts)
        self.compare(self.feeds.last_logits(self.session.prefill(self.feeds)), self.rows)

    def compare(self, logits_BV: np.ndarray, rows: list[Row]) -> None:
        for logits, row in zip(logits_BV, rows, strict=True):
            true = self.truth(row.whole)
            assert np.abs(logits - true).max() <= BOUND * np.abs(true).max()
            assert int(logits.argmax()) == int(true.argmax())
        self.steps += [(row.copy(), logits) for row, logits in zip(rows, logits_BV, strict=True)]

    def step(self, forced: dict[int, int] | None = None) -> None:
        """A greedy step, but for rows that are given a token."""
        forced = forced or {}
        ids = [forced.get(index, int(self.truth(row.whole).argmax())) for index, row in enumerate(self.rows)]
        self.feeds = self.feeds.next_step(ids, self.session.last_position(self.feeds))
        for row, token in zip(self.rows, ids, strict=True):
            row.written.append(token)
        self.compare(self.feeds.last_logits(self.session.decode(self.feeds)), self.rows)

    def join(self, *prompts: Prompt, given: RowValues[Any] | None = None) -> None:
        new = self.session.feeds(prompts)
        self.feeds, logits = self.session.join(self.feeds, new, given)
        last = logits[:, -1] if given is not None else new.last_logits(logits)
        rows = [Row(prompt, alone=given is None) for prompt in prompts]
        self.compare(last, rows)
        self.rows += rows

    def leave(self, *rows: int) -> None:
        self.feeds = self.session.leave(self.feeds, rows)
        self.rows = [row for index, row in enumerate(self.rows) if index not in rows]

    def copy(self, *rows: int) -> None:
        self.feeds = self.session.copy_rows(self.feeds, rows)
        self.rows += [self.rows[row].copy() for row in rows]

    def truncate(self, index: int, length: int) -> None:
        self.feeds = self.session.truncate(self.feeds, index, length)
        row = self.rows[index]
        assert length >= len(row.prompt.ids)
        del row.written[length - len(row.prompt.ids) :]


def prompts_of(session: Session, *lengths: int) -> list[Prompt]:
    random = np.random.default_rng(3)
    return [random_prompt(random, length, session.config) for length in lengths]


def in_company(batch: Batch) -> None:
    """One batch through everything that can happen to its rows."""
    first, second, third, long, short = prompts_of(batch.session, 7, 4, 9, 14, 3)
    batch.start(first, second)
    batch.step()
    batch.step()
    batch.join(third)  # longer than the others: they move
    batch.step()
    batch.copy(0, 2)
    batch.step({3: 17, 4: 31})  # copies go their own way
    batch.step()
    batch.leave(1)
    batch.step()
    # Two drafts were refused, of the third row and of the first one's copy.
    batch.truncate(1, len(third.ids) + 2)
    batch.truncate(2, len(first.ids) + 4)
    batch.step({1: 40, 2: 41})
    kept, whole = batch.session.cache.row(0), batch.rows[0].whole
    batch.leave(0, 2, 3)
    batch.step()
    batch.join(long, short)
    batch.step()
    batch.leave(1)  # the longest
    # Another text that begins as one that has left.
    batch.join(replace(whole, ids=(*whole.ids[:-1], 55, 56, 57)), given=kept.first(kept.length - 1))
    batch.step()
    batch.leave(0, 1, 2)
    batch.join(second)
    batch.step()
    assert len(batch.steps) == 40


@pytest.mark.parametrize(("name", "kind"), SESSIONS)
def test_rows_write_what_they_write_alone(name: str, kind: str, load: Open, truths: dict[str, Truth]) -> None:
    in_company(Batch(load(name, kind), truths[name]))


@pytest.mark.parametrize(("name", "kind"), [pair for pair in SESSIONS if pair[1] in BIT_EQUAL])
def test_rows_of_own_lengths_are_bit_equal(name: str, kind: str, load: Open, truths: dict[str, Truth]) -> None:
    """The same program, one row at a time: prompt, then the same tokens, step by step."""
    session = load(name, kind)
    batch = Batch(session, truths[name])
    in_company(batch)
    compared = 0
    for row, logits in batch.steps:
        if row.alone:
            feeds = session.feeds([row.prompt])
            found = feeds.last_logits(session.prefill(feeds))
            for token in row.written:
                feeds = feeds.next_step([token], session.last_position(feeds))
                found = feeds.last_logits(session.decode(feeds))
            np.testing.assert_array_equal(found[0], logits)
            compared += 1
    assert compared > 30


SELECT, ROW = KvCache.select, KvCache.row
CONTROLS = [(CAUSAL, "torch"), (CAUSAL, "ort"), (PREFIX, "ort"), (PREFIX, "tensorrt")]


@pytest.mark.parametrize(("name", "kind"), CONTROLS)
def test_control_a_copy_of_the_wrong_row(
    name: str, kind: str, load: Open, truths: dict[str, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row as long as the right one: lengths cannot tell, keys and values must."""
    batch = Batch(load(name, kind), truths[name])
    batch.start(*prompts_of(batch.session, 6, 6))
    monkeypatch.setattr(KvCache, "select", lambda cache, rows: SELECT(cache, [*rows[:-1], 1]))
    batch.copy(0)
    with pytest.raises(AssertionError):
        batch.step()


@pytest.mark.parametrize(("name", "kind"), CONTROLS)
def test_control_a_row_joins_without_its_last_token(
    name: str, kind: str, load: Open, truths: dict[str, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first stands there twice. (In another order all would say the same: keys are rotated already.)"""

    def shortened(cache: KvCache[Any], row: int) -> RowValues[Any]:
        right = ROW(cache, row)
        columns = [0, *range(right.length - 1)]
        return replace(right, arrays=tuple(array[:, columns] for array in right.arrays))

    batch = Batch(load(name, kind), truths[name])
    first, second = prompts_of(batch.session, 6, 8)
    batch.start(first)
    monkeypatch.setattr(KvCache, "row", shortened)
    batch.join(second)
    with pytest.raises(AssertionError):
        batch.step()


@pytest.mark.parametrize(
    ("name", "kind"), [(CAUSAL, "torch"), (CAUSAL, "ort"), (CAUSAL, "tensorrt"), (PREFIX, "torch"), (PREFIX, "ort")]
)
def test_control_feeds_and_cache_that_part(
    name: str, kind: str, load: Open, truths: dict[str, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut back on one side only: refused; and were it not, the row would write something else."""
    session = load(name, kind)
    (prompt,) = prompts_of(session, 9)
    feeds = session.feeds([prompt])
    session.prefill(feeds)
    session.cache.truncate(0, 7)
    step = feeds.next_step([5], session.last_position(feeds))
    with pytest.raises(InputError, match="goes on behind 9 tokens of row 0, which holds 7"):
        session.decode(step)
    monkeypatch.setattr(KvCache, "require", lambda cache, feeds: None)
    true = truths[name](replace(prompt, ids=(*prompt.ids[:7], 5)))
    found = session.decode(feeds.truncate(0, 7).next_step([5], session.last_position(feeds)))[0, -1]
    assert np.abs(found - true).max() <= BOUND * np.abs(true).max()
    session.prefill(feeds)
    session.cache.truncate(0, 7)
    try:
        parted = session.decode(step)[0, -1]
    except (RuntimeError, ValueError):
        return  # two columns are missing
    assert np.abs(parted - true).max() > 100 * BOUND * np.abs(true).max()


def test_an_engine_takes_as_many_rows_as_it_was_built_for(load: Open) -> None:
    session = load(CAUSAL, "engine tensorrt")
    feeds = session.feeds(prompts_of(session, 4, 5, 6, 7))
    session.prefill(feeds)
    for change in (
        lambda: session.join(feeds, session.feeds(prompts_of(session, 4, 5))), lambda: session.copy_rows(feeds, [0, 1])
    ):  # fmt: skip
        with pytest.raises(InputError, match="6 rows are wanted, and the session takes 5; let some leave first"):
            change()
    assert session.cache.rows == 4


def test_one_prompt_goes_on_from_what_is_given(load: Open) -> None:
    session = load(CAUSAL, "ort")
    one, other = prompts_of(session, 6, 8)
    feeds = session.feeds([one])
    session.prefill(feeds)
    given = session.cache.row(0)
    with pytest.raises(InputError, match="2 prompts are to begin with one row's values; join them one after another"):
        session.join(feeds, session.feeds([one, other]), given)
    with pytest.raises(InputError, match="6 of 6 tokens are given"):
        session.join(feeds, feeds, given)
    assert session.cache.lengths.tolist() == [6]
