"""Golden models in the dialects that sessions run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.exporter import export as exporter
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from tests.helpers.golden_data import Golden

LENGTH = 64
"""Columns of a static cache."""


def prompts_for(program: OnnxProgram, *lengths: int) -> list[Prompt]:
    """Random ones of these lengths, the same each time."""
    random = np.random.default_rng(0)
    return [random_prompt(random, length, program.config) for length in lengths]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxProgram]:
    """A golden model in a dialect, made once."""
    made: dict[tuple[str, str, str], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("programs")

    def export(name: str, dialect: str = "tensorrt", logits: str = "last") -> OnnxProgram:
        key = (name, dialect, logits)
        if key not in made:
            checkpoint = api.open_checkpoint(Golden(name).folder)
            length = LENGTH if dialect == "tensorrt" else None
            made[key] = exporter.export(
                checkpoint, root / "-".join(key), dialect=dialect, logits=logits, max_length=length
            )
        return made[key]

    return export
