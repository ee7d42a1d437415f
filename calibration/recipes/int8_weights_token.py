"""8-bit weights twice: in blocks to decode, where memory is the limit, and as W8A8 for prompts, where products are."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import BlockWeights, ExpertWeights, TokenWeights

RECIPE = Recipe(
    name="int8-weights-token",
    summary="8-bit blocks to decode, W8A8 for prompts",
    layers=BlockWeights(bits=8, block=64),
    head=BlockWeights(bits=8, block=64),
    prompt=TokenWeights(),
    experts=ExpertWeights(bits=8, block=32),
    dtypes=frozenset({"float32"}),
    # As int8-token, which reads the prompt; usually as int8-weights, whose operator decodes.
    tolerance=0.25,
    usual=0.08,
)
