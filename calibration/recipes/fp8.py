"""8-bit floats (E4M3) as Q/DQ, weights with one scale per channel; for Ada, Hopper and later."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import QdqWeights

RECIPE = Recipe(
    name="fp8",
    summary="8-bit floats, weights and activations (E4M3)",
    layers=None,
    head=None,
    explicit=QdqWeights(dtype="float8e4m3fn", activations=True),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    observer="min_max",
    # Equal to 1e-6, until a value on the border between two steps falls to either, and small models amplify it: 0.13.
    tolerance=0.25,
    usual=0.01,
)
