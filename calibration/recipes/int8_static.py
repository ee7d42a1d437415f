"""W8A8 as Q/DQ: 8-bit weights, one scale per channel, and activations rounded with one calibrated scale per tensor."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import ExpertWeights, QdqWeights

RECIPE = Recipe(
    name="int8-static",
    summary="W8A8, calibrated scales",
    layers=None,
    # The head decides the token, and its input is what all layers wrote.
    head=None,
    explicit=QdqWeights(dtype="int8", activations=True),
    experts=ExpertWeights(bits=8, block=32),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    observer="mse",
    # Equal to 1e-6, until a value on the border between two steps falls to either, and small models amplify it: 0.13.
    tolerance=0.25,
    usual=0.01,
)
