"""4-bit weights, each column rounded so as to mend the error of those before it (GPTQ, arXiv:2210.17323)."""

from __future__ import annotations

from dataclasses import replace

from glm_export.calibration.recipes.int4_weights import RECIPE as INT4_WEIGHTS

RECIPE = replace(
    INT4_WEIGHTS,
    name="int4-gptq",
    summary="4-bit weights, each mending the error before (GPTQ)",
    rounding="gptq",
)
