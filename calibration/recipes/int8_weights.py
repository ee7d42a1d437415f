"""Weights in 8 bits, blocks of 128; activations are rounded block by block, each row on its own."""

from __future__ import annotations

from glm_export.calibration.recipe import BlockWeights, Recipe

RECIPE = Recipe(
    name="int8-weights",
    summary="8-bit weights in blocks of 128; the safest",
    layers=BlockWeights(bits=8, block=128),
    head=BlockWeights(bits=8, block=128),
    dialects=frozenset({"ort"}),
    dtypes=frozenset({"float32", "float16"}),
    # Golden models of random weights need 0.05; the same without rounded activations, 1e-5.
    bound=0.08,
)
