"""Choosing tokens: each filter against transformers' own, and the draws against their probabilities."""

from __future__ import annotations

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
from glm_export.generation.sampling import Sampler, Sampling, keep_top_k, keep_top_p, penalize_repetition, probabilities

SCORES = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).normal(0, 3, 64).astype(np.float32))


@given(scores=SCORES, top_k=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_top_k(scores: np.ndarray, top_k: int) -> None:
    expected = TopKLogitsWarper(top_k)(None, torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(keep_top_k(scores, top_k), expected)


@given(scores=SCORES, top_p=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_top_p(scores: np.ndarray, top_p: float) -> None:
    expected = TopPLogitsWarper(top_p)(None, torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(keep_top_p(scores, top_p), expected)


@given(scores=SCORES, penalty=st.floats(0.5, 2.0), seen=st.lists(st.integers(0, 63), max_size=30))
@settings(max_examples=60, deadline=None)
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


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"repetition_penalty": 0}]
)
def test_impossible_options_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Sampling(**bad)
