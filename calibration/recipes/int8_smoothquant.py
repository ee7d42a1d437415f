"""W8A8 whose outlier channels were moved from activations into weights first (SmoothQuant, arXiv:2211.10438)."""

from __future__ import annotations

from glm_export.calibration.recipe import QdqWeights, Recipe

RECIPE = Recipe(
    name="int8-smoothquant",
    summary="W8A8, outliers smoothed into the weights",
    layers=None,
    # The head decides the token, and its input is what all layers wrote.
    head=None,
    explicit=QdqWeights(dtype="int8", activations=True),
    dialects=frozenset({"onnx", "ort", "portable", "tensorrt"}),
    dtypes=frozenset({"float32", "float16", "bfloat16"}),
    smoothing="smoothquant",
    # Of the inputs that are not smoothed: attention's output.
    observer="mse",
    # Equal to 1e-6, until a value on the border between two steps falls to either, and small models amplify it: 0.13.
    bound=0.25,
    usual=0.01,
)
