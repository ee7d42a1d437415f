"""Guesses out of a text: where they come from, when they are made, and that a text without repeats pays little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from glm_export.errors import InputError
from glm_export.generation.drafts import (
    LONGEST_PAUSE,
    MOST_DRAFTS,
    PROMPT_FORM_COST,
    SHORTEST_MATCH,
    DraftOptions,
    PromptLookup,
    drafts_beside,
)

COSTS = (0.0, 0.03, 0.06, 0.2, 0.3)


def replayed(
    prompt: Sequence[int], answer: Sequence[int], cost: float, call_cost: float = 0.0, least: int = 1
) -> tuple[float, PromptLookup]:
    """Tokens a step's time, where a known answer is written with guesses, and the one who guessed."""
    lookup, at, spent = PromptLookup(DraftOptions(column_cost=cost, call_cost=call_cost, least=least)), 0, 0.0
    while at < len(answer):
        guesses = lookup([*prompt, *answer[:at]], len(answer) - at - 1)
        assert not guesses or len(guesses) >= least
        right = 0
        while right < len(guesses) and guesses[right] == answer[at + right]:
            right += 1
        spent += 1 + cost * len(guesses) + call_cost * bool(guesses)
        at += right + 1
    return len(answer) / spent, lookup


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, MOST_DRAFTS))
def test_guesses_stood_behind_the_same_tokens(ids: list[int], most: int) -> None:
    """The longest end of the text that is in it before, where it was last; found by trying every place."""
    guesses = PromptLookup(DraftOptions(column_cost=0.0))(ids, most)
    assert len(guesses) <= most
    lengths = {}
    for end in range(1, len(ids)):
        same = 0
        while same < min(end, 12) and ids[end - 1 - same] == ids[-1 - same]:
            same += 1
        lengths[end] = same
    longest = max(lengths.values(), default=0)
    if longest < SHORTEST_MATCH or not most:
        assert not guesses
        return
    place = max(end for end, same in lengths.items() if same == longest)
    assert guesses
    assert guesses == ids[place : place + len(guesses)]


def test_a_text_that_repeats_is_written_many_tokens_a_step() -> None:
    text = np.random.default_rng(0).integers(0, 5000, 400).tolist()
    speed, lookup = replayed(text, text, 0.06)
    assert speed > 5
    assert lookup.accepted > 0.8 * len(text)
    # The control: another text of the same length.
    other = np.random.default_rng(1).integers(0, 5000, 400).tolist()
    assert replayed(text, other, 0.06)[0] <= 1


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("vocabulary", [2, 10, 50, 400, 5000])
@pytest.mark.parametrize(("call_cost", "least"), [(0.0, 1), (PROMPT_FORM_COST, 8), (2.0, 8)])
def test_a_text_without_repeats_loses_little(cost: float, vocabulary: int, call_cost: float, least: int) -> None:
    """Tokens at random: matches come by chance, and say nothing."""
    random = np.random.default_rng(2)
    answer = random.integers(0, vocabulary, 1500).tolist()
    speed, lookup = replayed(random.integers(0, vocabulary, 500).tolist(), answer, cost, call_cost, least)
    assert speed > 0.97
    if vocabulary == 50 and not call_cost:
        assert lookup.offered > 0


def test_guesses_that_cost_a_call_wait_until_they_are_likely() -> None:
    """What stood there is compared without being read, so a text that repeats is seen to, and then pays."""
    text = np.random.default_rng(0).integers(0, 5000, 400).tolist()
    speed, lookup = replayed(text, text, 0.08, PROMPT_FORM_COST, 8)
    assert speed > 4
    assert lookup.accepted > 0.8 * len(text)
    # The control: nothing is compared, and the first guess is never made.
    blind = PromptLookup(DraftOptions(column_cost=0.08, call_cost=PROMPT_FORM_COST, least=8))
    blind._count = lambda right, wrong: None  # type: ignore[method-assign]
    assert not any(blind([*text, *text[:at]]) for at in range(1, len(text)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, MOST_DRAFTS))
def test_as_many_guesses_as_are_wanted_at_least(ids: list[int], least: int) -> None:
    """Beyond the end of the text guesses go on as they began."""
    ids = [*ids, 1, 1, 1]
    options = DraftOptions(column_cost=0.0, least=least)
    assert PromptLookup(options)(ids, least - 1) == []
    guesses, fewer = PromptLookup(options)(ids), PromptLookup(DraftOptions(column_cost=0.0))(ids)
    assert len(guesses) == max(least, len(fewer))
    assert guesses == (fewer * least)[: len(guesses)]


def test_it_pauses_where_guesses_fail_and_goes_on_where_they_are_right() -> None:
    lookup, known, asked = PromptLookup(DraftOptions(column_cost=0.0)), [1, 2, 3], []
    for step in range(400):
        # Each time 1, 2 is followed by another number.
        known += [1, 2]
        asked.append(bool(lookup(known)))
        known.append(1000 + step)
    made = np.flatnonzero(asked)
    assert len(made) < 14
    assert np.diff(made).max() == LONGEST_PAUSE + 1
    for _ in range(LONGEST_PAUSE + 4):
        known += [1, 2]
        if guesses := lookup(known):
            known += guesses[:1]
        else:
            known.append(7)
    assert [bool(lookup([*known, *[1, 2, 7] * count, 1, 2])) for count in range(1, 4)] == [True] * 3


def test_several_rows_guess_less() -> None:
    assert [drafts_beside(rows) for rows in (0, 1, 2, 4, 8, 16, 17, 64)] == [16, 16, 7, 3, 1, 0, 0, 0]
    packed = [drafts_beside(rows, packed=True) for rows in (0, 1, 2, 4, 8, 16, 34, 68)]
    assert packed == [16, 16, 16, 16, 7, 3, 1, 0]


@pytest.mark.parametrize("cost", [-0.1, float("nan")])
def test_a_cost_that_makes_no_sense(cost: float) -> None:
    with pytest.raises(InputError, match="a guess should cost 0 or more of a step; found"):
        DraftOptions(column_cost=cost)
    with pytest.raises(InputError, match="a guess should cost 0 or more of a step; found"):
        DraftOptions(call_cost=cost)


@pytest.mark.parametrize("least", [0, MOST_DRAFTS + 1])
def test_guesses_no_step_could_have(least: int) -> None:
    with pytest.raises(InputError, match=f"a step has 1 to {MOST_DRAFTS} guesses, if any; found {least}"):
        DraftOptions(least=least)
