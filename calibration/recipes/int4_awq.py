"""4-bit weights whose salient channels were enlarged first, as their inputs demand (AWQ, arXiv:2306.00978)."""

from __future__ import annotations

from dataclasses import replace

from glm_export.calibration.recipes.int4_weights import RECIPE as INT4_WEIGHTS

RECIPE = replace(
    INT4_WEIGHTS,
    name="int4-awq",
    summary="4-bit weights, scaled by their activations (AWQ)",
    smoothing="awq",
    # One token of golden GLM's needs 0.10: smoothing moves what a block's inputs have in common.
    tolerance=0.12,
)
