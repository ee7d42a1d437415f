"""Weights in 4 bits, blocks of 64: as large as llama.cpp's Q4_0. The head, which decides the token, has 8."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import BlockWeights, ExpertWeights, QdqWeights

RECIPE = Recipe(
    name="int4-weights",
    summary="4-bit weights, head 8; the smallest",
    layers=BlockWeights(bits=4, block=64),
    head=BlockWeights(bits=8, block=128),
    explicit=QdqWeights(dtype="int4", block=64),
    explicit_head=QdqWeights(dtype="int8"),
    experts=ExpertWeights(bits=4, block=32),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    # As int8-weights: the bits of the weights do not matter here.
    tolerance=0.08,
)
