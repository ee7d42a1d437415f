"""W8A8 whose outlier channels were moved from activations into weights first (SmoothQuant, arXiv:2211.10438)."""

from __future__ import annotations

from dataclasses import replace

from glm_export.calibration.recipes.int8_static import RECIPE as INT8_STATIC

RECIPE = replace(
    INT8_STATIC,
    name="int8-smoothquant",
    summary="W8A8, outliers smoothed into the weights",
    # The observer is left to inputs that are not smoothed: attention's output.
    smoothing="smoothquant",
)
