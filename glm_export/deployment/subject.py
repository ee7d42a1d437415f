"""What other loaders make of an exported folder."""

from __future__ import annotations

from glm_export.artifacts.program import OnnxProgram
from glm_export.exporter.card.loaders import Subject, explicit_blocks
from glm_export.sessions.batch_invariance import recipe_of


def subject_of(program: OnnxProgram) -> Subject:
    """What a loader's verdict on an exported program depends on."""
    block, head_block = explicit_blocks(recipe_of(program))
    return Subject(
        config=program.config,
        signature=program.signature,
        dtype=program.dtype,
        recipe=program.recipe,
        block=block,
        head_block=head_block,
    )
