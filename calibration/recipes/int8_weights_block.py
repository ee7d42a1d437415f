"""Weights in 8 bits and blocks of 128 as Q/DQ: finer than one scale per channel where a few inputs dominate."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import QdqWeights

RECIPE = Recipe(
    name="int8-weights-block",
    summary="8-bit weights in blocks of 128, as Q/DQ",
    layers=None,
    head=None,
    explicit=QdqWeights(dtype="int8", block=128),
    explicit_head=QdqWeights(dtype="int8", block=128),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    # Activations stay in float.
    tolerance=0.0,
)
