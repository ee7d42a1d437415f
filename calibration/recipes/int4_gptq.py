"""4-bit weights, each column rounded so as to mend the error of those before it (GPTQ, arXiv:2210.17323)."""

from __future__ import annotations

from glm_export.calibration.recipe import BlockWeights, QdqWeights, Recipe

RECIPE = Recipe(
    name="int4-gptq",
    summary="4-bit weights, each mending the error before (GPTQ)",
    layers=BlockWeights(bits=4, block=64),
    head=BlockWeights(bits=8, block=128),
    explicit=QdqWeights(dtype="int4", block=64),
    explicit_head=QdqWeights(dtype="int8"),
    dialects=frozenset({"onnx", "ort", "tensorrt"}),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    rounding="gptq",
    # As int8-weights.
    bound=0.08,
)
