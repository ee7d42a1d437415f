"""W8A8 as Q/DQ: 8-bit weights, one scale per channel, and activations rounded as they come, one scale per token."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import ExpertWeights, QdqWeights

TOKENS = QdqWeights(dtype="int8", per_token=True)

RECIPE = Recipe(
    name="int8-token",
    summary="W8A8, one scale per token, as they come",
    layers=None,
    head=None,
    explicit=TOKENS,
    explicit_head=TOKENS,
    experts=ExpertWeights(bits=8, block=32),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    smoothing_with_ranges="smoothquant",
    # As int8-static: equal to 1e-6, until a value on the border between two steps falls to either.
    tolerance=0.25,
    usual=0.01,
)
