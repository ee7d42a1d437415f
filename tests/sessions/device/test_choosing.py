"""The device chooses the tokens the host would, from the same logits and the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from glm_export.generation.sampling import Sampler, Sampling
from glm_export.sessions.device.choosing import Draw, drawn, likeliest

SAMPLINGS = [
    Sampling(temperature=1.0), Sampling(temperature=0.3, top_k=5), Sampling(temperature=1.7, top_p=0.8),
    Sampling(temperature=0.9, top_k=40, top_p=0.5), Sampling(temperature=1.0, top_p=0.0),
    Sampling(temperature=2.0, top_k=1),
]  # fmt: skip


@given(
    seed=st.integers(0, 2**32),
    sampling=st.sampled_from(SAMPLINGS),
    coarse=st.booleans(),
    vocabulary=st.integers(1, 300),
)
@settings(max_examples=150)
def test_draws_are_the_hosts(seed: int, sampling: Sampling, coarse: bool, vocabulary: int) -> None:
    """Coarse logits are many times equal, as those of float16 are."""
    random = np.random.default_rng(seed)
    logits_BV = random.normal(scale=3, size=(5, vocabulary)).astype(np.float32)
    if coarse:
        logits_BV = np.round(logits_BV).astype(np.float16).astype(np.float32)
    draws_B = np.array([np.random.default_rng(row).random() for row in range(5)])
    how = Draw(temperature=sampling.temperature, top_k=int(sampling.top_k), top_p=float(sampling.top_p))
    found = drawn(torch.from_numpy(logits_BV), torch.from_numpy(draws_B), how).tolist()
    expected = []
    for row in range(5):
        sampler = Sampler(sampling)
        sampler._random = np.random.default_rng(row)
        expected.append(sampler.choose(logits_BV[row], []))
    assert found == expected


def test_draws_beforehand_are_those_made_one_by_one() -> None:
    one, other = Sampler(Sampling(temperature=1.0, seed=3)), Sampler(Sampling(temperature=1.0, seed=3))
    logits = np.zeros(1000, np.float32)
    assert one.choose(logits, []) == other.choose(logits, [])
    later = [int(draw * 1000) for draw in one.draws(20)]
    assert [other.choose(logits, []) for _ in range(20)] == later


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_of_the_likeliest(dtype: torch.dtype) -> None:
    logits_BV = torch.tensor([[1.0, 7.0, 7.0, 0.0], [2.0, 2.0, 2.0, 2.0]], dtype=dtype)
    assert likeliest(logits_BV).tolist() == [1, 0]


def test_a_row_of_no_numbers_gives_an_id_there_is() -> None:
    """It ends with an error, but its id is looked up in the embedding before that."""
    logits_BV = torch.tensor([[torch.nan] * 4, [torch.inf] * 4])
    found = drawn(logits_BV, torch.tensor([0.5, 0.5], dtype=torch.float64), Draw(temperature=1.0, top_k=2, top_p=0.9))
    assert all(0 <= token < 4 for token in found.tolist())
