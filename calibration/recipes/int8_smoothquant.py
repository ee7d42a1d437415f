"""W8A8 whose outlier channels were moved from activations into weights first (SmoothQuant, arXiv:2211.10438)."""

from __future__ import annotations

from glm_export.calibration.recipe import QdqWeights, Recipe

RECIPE = Recipe(
    name="int8-smoothquant",
    summary="8-bit weights and activations, outlier channels smoothed into the weights (SmoothQuant)",
    layers=None,
    # The head decides the token, and its input is what all layers wrote.
    head=None,
    explicit=QdqWeights(dtype="int8", activations=True),
    dialects=frozenset({"onnx", "ort", "portable", "tensorrt"}),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    smoothing="smoothquant",
    observer="min_max",
    bound=0.05,
)
