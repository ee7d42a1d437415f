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
    SHORTEST_MATCH,
    DraftOptions,
    PromptLookup,
    drafts_beside,
)

COSTS = (0.0, 0.03, 0.06, 0.2, 0.3)


def replayed(prompt: Sequence[int], answer: Sequence[int], cost: float) -> tuple[float, PromptLookup]:
    """Tokens a step's time, where a known answer is written with guesses, and the one who guessed."""
    lookup, at, spent = PromptLookup(DraftOptions(column_cost=cost)), 0, 0.0
    while at < len(answer):
        guesses = lookup([*prompt, *answer[:at]], len(answer) - at - 1)
        right = 0
        while right < len(guesses) and guesses[right] == answer[at + right]:
            right += 1
        spent += 1 + cost * len(guesses)
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
def test_a_text_without_repeats_loses_little(cost: float, vocabulary: int) -> None:
    """Tokens at random: matches come by chance, and say nothing."""
    random = np.random.default_rng(2)
    answer = random.integers(0, vocabulary, 1500).tolist()
    speed, lookup = replayed(random.integers(0, vocabulary, 500).tolist(), answer, cost)
    assert speed > 0.97
    if vocabulary == 50:
        assert lookup.offered > 0


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


@pytest.mark.parametrize("cost", [-0.1, float("nan")])
def test_a_cost_that_makes_no_sense(cost: float) -> None:
    with pytest.raises(InputError, match="a guess should cost 0 or more of a step; found"):
        DraftOptions(column_cost=cost)
