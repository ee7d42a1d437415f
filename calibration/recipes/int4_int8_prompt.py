"""4-bit weights decode, 8-bit ones beside them read prompts: each phase in the form that is fastest there."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import BlockWeights, ChannelWeights, ExpertWeights

RECIPE = Recipe(
    name="int4-int8-prompt",
    summary="4-bit weights to decode, 8-bit ones beside them for prompts",
    layers=BlockWeights(bits=4, block=64),
    head=BlockWeights(bits=8, block=128),
    prompt=ChannelWeights(),
    experts=ExpertWeights(bits=4, block=32),
    dtypes=frozenset({"float32"}),
    # As int8-dynamic, whose products read the prompt.
    tolerance=0.1,
)
