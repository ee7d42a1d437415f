"""Weights in 8 bits: blocks of 128 in ONNX Runtime's product, one scale per channel where the program says Q/DQ."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import BlockWeights, ExpertWeights, QdqWeights

RECIPE = Recipe(
    name="int8-weights",
    summary="8-bit weights; the safest",
    layers=BlockWeights(bits=8, block=128),
    head=BlockWeights(bits=8, block=128),
    explicit=QdqWeights(dtype="int8"),
    explicit_head=QdqWeights(dtype="int8"),
    experts=ExpertWeights(bits=8, block=32),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    # Golden models of random weights need 0.05 in ort, where activations are rounded; the same without, 1e-5.
    tolerance=0.08,
)
