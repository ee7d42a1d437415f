"""What is asked of a calibration, and of everything else that reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from glm_export.calibration import recipes
from glm_export.errors import InputError
from glm_export.spec.option import described, flag, listed
from glm_export.spec.weight_formats import BLOCKS

if TYPE_CHECKING:
    from glm_export.calibration.corpus.corpus import Corpus
    from glm_export.calibration.recipe import Recipe

SHORTEST_ROW = 16
Row = str | Mapping[str, Any]
"""Of a corpus: a text, or the fields of a data set's row."""
Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)


class TextKeywords(TypedDict, total=False):
    """The fields of :class:`TextOptions`, as keywords."""

    corpus: str | Path | Sequence[Row] | Corpus
    sequence_length: int
    max_samples: int | None


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Which text is read, and how much of it."""

    corpus: str | Path | Sequence[Row] | Corpus = field(
        default="default", metadata=described("A .txt, .jsonl or .json, gzipped or not; or default, poems, technical.")
    )
    sequence_length: int = field(default=512, metadata=described("Tokens of a row.", least=SHORTEST_ROW))
    max_samples: int | None = field(
        default=None, metadata=described("Rows to take, evenly spaced; all without it.", least=1)
    )


class CalibrationKeywords(TextKeywords, total=False):
    """The fields of :class:`CalibrationOptions`, as keywords."""

    recipe: recipes.RecipeName | None
    block_size: int | None
    device: Device


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions(TextOptions):
    """What is measured on which text, and where."""

    recipe: str | None = field(
        default=None, metadata=described("One that has weights rounded here: int4-gptq.", choices=recipes.names)
    )
    block_size: int | None = field(
        default=None,
        metadata=described(
            "With a recipe: weights that share a scale, in place of its own number.", least=BLOCKS[0], most=BLOCKS[-1]
        ),
    )
    device: str = field(default="cpu", metadata=described("Where layers are computed.", choices=DEVICES))

    @property
    def loaded_recipe(self) -> Recipe | None:
        """The recipe of that name, in the blocks asked for.

        Raises:
            InputError: it is unknown, or has no blocks of that size; or a size is given without one that rounds here.
        """
        loaded = None if self.recipe is None else recipes.load(self.recipe)
        if self.block_size is None:
            return loaded
        if loaded is None or loaded.rounding == "nearest":
            raise InputError(
                f"{flag(CalibrationOptions, 'block_size')} is for a --recipe that has weights rounded here; found "
                f"{self.recipe or 'none'}: leave it out, and give it to 'glm-export export'"
            )
        return loaded.with_blocks(self.block_size)
