"""Choosing tokens: each filter against transformers' own, and the draws against their probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glm_export.errors import InputError
from glm_export.generation.sampling import (
    Sampler,
    Sampling,
    drawn,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    probabilities,
)

SCORES = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).normal(0, 3, 64).astype(np.float32))


@given(scores=SCORES, top_k=st.integers(1, 80))
@settings(max_examples=60)
def test_top_k(scores: np.ndarray, top_k: int) -> None:
    expected = TopKLogitsWarper(top_k)(None, torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(keep_top_k(scores, top_k), expected)


@given(scores=SCORES, top_p=st.floats(0.0, 0.99))
@settings(max_examples=60)
def test_top_p(scores: np.ndarray, top_p: float) -> None:
    expected = TopPLogitsWarper(top_p)(None, torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(keep_top_p(scores, top_p), expected)


@given(scores=SCORES, penalty=st.floats(0.5, 2.0), seen=st.lists(st.integers(0, 63), max_size=30))
@settings(max_examples=60)
def test_repetition_penalty(scores: np.ndarray, penalty: float, seen: list[int]) -> None:
    ids = torch.tensor([seen], dtype=torch.int64)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.tensor(scores)[None].clone())[0].numpy()
    np.testing.assert_allclose(penalize_repetition(scores, seen, penalty), expected, rtol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    counts = np.bincount([sampler.choose(scores, []) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), [0.5, 0.3, 0.15, 0.05], atol=0.01)


def test_seed_fixes_the_sequence() -> None:
    scores = np.zeros(1000, np.float32)
    first, again, other = (Sampler(Sampling(temperature=1.0, seed=seed)) for seed in (3, 3, 4))
    draws = [[sampler.choose(scores, []) for _ in range(10)] for sampler in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(Sampling()).choose(np.array([0, 2, 2], np.float32), []) == 1


def test_probabilities_of_minus_infinity_are_zero() -> None:
    assert probabilities(np.array([0, -np.inf], np.float32)).tolist() == [1.0, 0.0]


FLAT = np.array([1.0, 3.0, 2.0, 3.0, -4.0], np.float32)
EXTREMES = {
    "temperature": (1e-320, 1e-39, 1e-6, 1e-5, 1e39, 1e300), "top_k": (0, 1, 5, 10**30),
    "top_p": (0.0, 1e-300, 1e-9, 1.0), "repetition_penalty": (1e-300, 1e-39, 1.0, 1e39, 1e308),
}  # fmt: skip


@given(
    chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in EXTREMES.items()}),
    scale=st.sampled_from((1e-30, 1.0, 1e4, 1e30)), seen=st.lists(st.integers(0, 4), max_size=6),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=200)
def test_no_setting_ends_in_nonsense(chosen: dict[str, float], scale: float, seen: list[int], seed: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        token = Sampler(Sampling(**chosen, seed=seed)).choose(FLAT * np.float32(scale), seen)
    assert 0 <= token < len(FLAT)


@pytest.mark.parametrize("temperature", [1e-320, 1e-39, 1e-6])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    draws = {Sampler(Sampling(temperature=temperature, seed=seed)).choose(FLAT, []) for seed in range(20)}
    assert draws == {1}


@pytest.mark.parametrize("sampling", [{"temperature": 1e39}, {"temperature": 1e39, "top_k": 10**30, "top_p": 1.0}])
def test_any_heat_is_uniform(sampling: dict[str, float]) -> None:
    sampler = Sampler(Sampling(**sampling, seed=0))
    counts = np.bincount([sampler.choose(FLAT, []) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.02)


def test_no_mass_is_the_likeliest_alone() -> None:
    likeliest = np.array([0.0, 5.0, 1.0], np.float32)
    assert {Sampler(Sampling(temperature=9, top_p=0.0, seed=seed)).choose(likeliest, []) for seed in range(50)} == {1}


@pytest.mark.parametrize("bad", ["temperature", "repetition_penalty", "top_p"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_no_number_is_named(bad: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{bad} must be .*found (inf|nan)$"):
        Sampling(**{bad: value})


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": -0.1}, {"top_p": 1.5}, {"repetition_penalty": 0}, {"seed": -1},
     {"temperature": "1"}, {"temperature": None}, {"top_k": 1.5}, {"top_k": math.nan}, {"top_p": []}, {"seed": 1.5},
     {"seed": "7"}, {"repetition_penalty": 1j}, {"top_k": "x" * 10_000}],
)  # fmt: skip
def test_impossible_options_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(bad))} must be .*, found ") as raised:
        Sampling(**bad)
    assert len(str(raised.value)) < 200


def test_min_p_keeps_what_is_likely_enough() -> None:
    """A half of the likeliest, to the last bit: 0.4 / 0.8 stays, 0.39 goes."""
    scores = np.log(np.array([0.8, 0.4, 0.39, 0.01]))
    kept = keep_min_p(scores, 0.5 - 1e-12)
    assert np.isfinite(kept).tolist() == [True, True, False, False]
    assert keep_min_p(scores, 0.0) is scores
    draws = {Sampler(Sampling(temperature=1, min_p=0.49, seed=seed)).choose(scores, []) for seed in range(60)}
    assert draws == {0, 1}


def test_presence_and_frequency_count_what_was_written_alone() -> None:
    scores = np.array([1.0, 1.4, 0.9], np.float32)
    frequent, present = Sampling(frequency_penalty=0.3), Sampling(presence_penalty=0.45)
    assert Sampler(frequent).choose(scores, [1, 1], [1]) == 1
    assert Sampler(frequent).choose(scores, [1, 1], [1, 1]) == 0
    assert Sampler(present).choose(scores, [1, 1, 1], []) == 1
    assert Sampler(present).choose(scores, [], [1]) == 0
    assert Sampler(Sampling(presence_penalty=-0.6)).choose(scores, [], [2]) == 2


def test_tokens_of_minus_infinity_are_never_chosen() -> None:
    scores = np.array([-np.inf, 0.0, -np.inf], np.float32)
    for sampling in (Sampling(), Sampling(temperature=2, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=1)):
        assert Sampler(sampling).choose(scores, [1], [1]) == 1


@given(
    size=st.integers(1, 3000), spread=st.sampled_from([0.01, 3.0, 300.0]), forbidden=st.sampled_from([0.0, 0.5, 0.99]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_first_whose_chance_is_reached_is_drawn(size: int, spread: float, forbidden: float, seed: int) -> None:
    """As adding up one chance after another says it, but for a share on the very edge of two tokens."""
    random = np.random.default_rng(seed)
    scores_V = random.standard_normal(size) * spread
    scores_V[random.random(size) < forbidden] = -np.inf
    scores_V[random.integers(size)] = 0.0
    shares_V = np.cumsum(probabilities(scores_V))
    for draw in (0.0, float(np.nextafter(1.0, 0.0)), *random.random(20), *shares_V[:3][shares_V[:3] < 1]):
        token = drawn(scores_V.copy(), draw)
        assert np.exp(scores_V[token] - scores_V.max()) > 0
        before = shares_V[token - 1] if token else 0.0
        assert before - 1e-12 <= draw <= shares_V[token] + 1e-12


def test_every_edge_of_equal_chances() -> None:
    """A power of two of them, whose shares are exact: each token begins where the one before it ends."""
    scores_V = np.zeros(1024)
    assert [drawn(scores_V.copy(), place / 1024) for place in range(1024)] == list(range(1024))
    below = [drawn(scores_V.copy(), float(np.nextafter(place / 1024, 0))) for place in range(1, 1025)]
    assert below == list(range(1024))
