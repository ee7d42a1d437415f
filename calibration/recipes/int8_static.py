"""W8A8 as Q/DQ: 8-bit weights, a scale a channel, and activations rounded with one calibrated scale a tensor."""

from __future__ import annotations

from glm_export.calibration.recipe import QdqWeights, Recipe

RECIPE = Recipe(
    name="int8-static",
    summary="8-bit weights and activations, calibrated scales (W8A8)",
    layers=None,
    # The head decides the token, and its input is what all layers wrote.
    head=None,
    explicit=QdqWeights(dtype="int8", activations=True),
    dialects=frozenset({"onnx", "ort", "portable", "tensorrt"}),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    observer="mse",
    bound=0.05,
)
