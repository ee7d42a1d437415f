"""Whether a row's numbers depend on what stands beside it: the recipe decides."""

from __future__ import annotations

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.keep import recipe_kept
from glm_export.calibration.recipe import Recipe
from glm_export.graphs import dialects


def recipe_of(program: OnnxProgram) -> Recipe | None:
    """A program's recipe in the formats of its dialect; None where it is not quantized."""
    if program.recipe is None:
        return None
    recipe = recipe_kept(program.manifest) if program.recipe == recipes.KEEP else recipes.load(program.recipe)
    return recipe.carried_by(dialects.load(program.dialect).can)


def rows_apart(recipe: Recipe | None) -> bool:
    """Whether products of a recipe give a row the same whatever stands beside it.

    One scale for the whole tensor (int8-dynamic) rounds a row by its neighbours, and formats that change with the
    number of tokens (int4-int8-prompt) are another model in a batch.
    """
    formats = (recipe.layers, recipe.head, recipe.prompt) if recipe is not None else ()
    return all(one is None or one.batch_invariant for one in formats)
