"""What is asked of a calibration, and of everything else that reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from glm_export.calibration import recipes
from glm_export.spec.option import described, listed

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
    device: Device


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions(TextOptions):
    """What is measured on which text, and where."""

    recipe: str | None = field(
        default=None, metadata=described("One that has weights rounded here: int4-gptq.", choices=recipes.names)
    )
    device: str = field(default="cpu", metadata=described("Where layers are computed.", choices=DEVICES))

    @property
    def loaded_recipe(self) -> Recipe | None:
        """The recipe of that name."""
        return None if self.recipe is None else recipes.load(self.recipe)
