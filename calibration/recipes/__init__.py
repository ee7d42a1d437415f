"""One file per recipe, each with one ``RECIPE`` value; found by its name, with dashes."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Literal

from glm_export.calibration.recipe import Recipe
from glm_export.errors import InputError

RecipeName = Literal[
    "fp8",
    "int4-awq",
    "int4-gptq",
    "int4-int8-prompt",
    "int4-weights",
    "int8-dynamic",
    "int8-kv",
    "int8-smoothquant",
    "int8-static",
    "int8-token",
    "int8-weights",
    "int8-weights-block",
    "keep",
]
"""For editors and type checkers; :func:`names` finds them, all but the last."""
KEYS_AND_VALUES: RecipeName = "int8-kv"
"""The recipe that keeps a cache of integers and nothing else."""
KEEP: RecipeName = "keep"
"""The recipe a quantized source brings along (``calibration/keep.py``), which has no file here."""


def names() -> list[str]:
    """Every recipe that has a file here."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__))


def load(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: no such recipe; the message lists those there are.
    """
    if name not in names():
        raise InputError(f"recipe {name!r} is unknown; known recipes: {', '.join(names())}")
    recipe: Recipe = import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
    return recipe
