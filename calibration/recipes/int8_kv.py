"""Keys and values kept as int8, with scales of their own for each layer; weights and products stay as they are."""

from __future__ import annotations

from glm_export.calibration.recipe import KV_DTYPES, KV_TOLERANCE, Recipe

RECIPE = Recipe(
    name="int8-kv",
    summary="8-bit keys and values in the cache",
    layers=None,
    head=None,
    embedding=None,
    dtypes=KV_DTYPES,
    observer="min_max",
    kv=True,
    tolerance=KV_TOLERANCE,
)
