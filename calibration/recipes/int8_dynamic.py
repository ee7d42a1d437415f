"""8-bit weights and activations, multiplied as integers; activations are rounded with one scale per tensor."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe
from glm_export.spec.weight_formats import ChannelWeights, ExpertWeights

RECIPE = Recipe(
    name="int8-dynamic",
    summary="8-bit weights and activations, one scale for all rows: not for batches",
    layers=ChannelWeights(),
    head=ChannelWeights(),
    # The operator takes float32 activations only.
    experts=ExpertWeights(bits=8, block=32),
    dtypes=frozenset({"float32"}),
    # One scale for a whole tensor rounds more coarsely than one for each block: golden models need 0.05.
    tolerance=0.1,
)
