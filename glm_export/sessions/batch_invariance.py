"""How far a row's numbers depend on what stands beside it: recipe, dialect and device decide."""

from __future__ import annotations

from dataclasses import replace

from glm_export.artifacts.program import BLOCK_OPTIONS, NEEDS, PROMPT_LAYERS, SUMS_IN_16_BITS, OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.keep import recipe_kept
from glm_export.calibration.recipe import Recipe, program_invariance
from glm_export.graphs import dialects
from glm_export.spec.batch_invariance import BatchInvariance, weakest
from glm_export.spec.weight_formats import PROMPT_TOKENS


def recipe_of(program: OnnxProgram) -> Recipe | None:
    """A program's recipe in the formats of its dialect; None where it is not quantized."""
    if program.recipe is None:
        return None
    kept = program.recipe == recipes.KEEP
    recipe = recipe_kept(program.manifest) if kept else recipes.load(program.recipe)
    recipe = recipe.with_int8_cache() if program.signature.cache_is_integer else recipe
    carried = recipe.with_blocks(**program.manifest.get(BLOCK_OPTIONS, {})).carried_by(
        dialects.load(program.dialect).can
    )
    carried = carried.with_sums_in_16_bits(fit=program.manifest.get(SUMS_IN_16_BITS) is True)
    # Programs that say nothing of what they need were written before experts were rounded.
    return carried if NEEDS in program.manifest else replace(carried, experts=None)


def invariance_of(program: OnnxProgram, device: str) -> BatchInvariance:
    """How far a row depends on others, by recipe, dialect and family; to the bit on a CPU alone."""
    level = program_invariance(program.config, program.signature, recipe_of(program))
    return level if device == "cpu" else weakest(BatchInvariance.CLOSE, level)


def prompt_form_tokens(program: OnnxProgram) -> int | None:
    """Calls of more tokens are multiplied by weights of a second form in every layer; None where not in each."""
    recipe, layers = recipe_of(program), program.config.num_layers
    if recipe is None or recipe.prompt is None or program.config.experts is not None:
        return None
    return PROMPT_TOKENS if program.manifest.get(PROMPT_LAYERS, layers) == layers else None
