"""4-bit weights whose salient channels were enlarged first, as their inputs demand (AWQ, arXiv:2306.00978)."""

from __future__ import annotations

from glm_export.calibration.recipe import BlockWeights, QdqWeights, Recipe

RECIPE = Recipe(
    name="int4-awq",
    summary="4-bit weights, scaled by their activations (AWQ)",
    layers=BlockWeights(bits=4, block=64),
    head=BlockWeights(bits=8, block=128),
    explicit=QdqWeights(dtype="int4", block=64),
    explicit_head=QdqWeights(dtype="int8"),
    dialects=frozenset({"onnx", "ort", "tensorrt"}),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    smoothing="awq",
    # As int8-weights, and one token of golden GLM's 0.10: smoothing moves what a block's inputs have in common.
    bound=0.12,
)
