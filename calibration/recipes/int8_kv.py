"""Keys and values kept as int8, with scales of their own for each layer; weights and products stay as they are."""

from __future__ import annotations

from glm_export.calibration.recipe import Recipe

RECIPE = Recipe(
    name="int8-kv",
    summary="8-bit keys and values in the cache",
    layers=None,
    head=None,
    embedding=None,
    dtypes=frozenset({"float32", "float16"}),
    observer="min_max",
    kv=True,
    tolerance=0.05,
)
