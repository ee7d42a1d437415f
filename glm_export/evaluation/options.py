"""What is asked of a measurement on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glm_export.calibration.options import TextKeywords, TextOptions
from glm_export.spec.dtypes import DTYPES, DTypeName
from glm_export.spec.option import described, listed

BUDGET_SAMPLES = 16
"""Rows of text that an export's budget is measured on unless told otherwise: each layer is a pass over them."""


def kept_costs(out: Path) -> Path:
    """Where costs of layers lie that were measured for an export to ``out``, until it is written."""
    return out.absolute().parent / f".{out.absolute().name}.costs.json"


class QualityKeywords(TextKeywords, total=False):
    """The fields of :class:`QualityOptions`, as keywords."""

    budget: str | Sequence[str]
    reference_dtype: DTypeName
    by_layer: bool
    layer_by_layer: bool


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions(TextOptions):
    """On which text a program is held to its reference, what it may lose, and what else is asked."""

    budget: str | Sequence[str] = field(
        default=(), metadata=described("e.g. kl=0.01 or recall=0.99; exit 1 where it is exceeded.")
    )
    reference_dtype: str = field(
        default="float32",
        metadata=described("Of PyTorch; the checkpoint's own needs no copy of its weights.", choices=DTYPES),
    )
    by_layer: bool = field(default=False, metadata=described("Also what each layer's quantizing costs alone."))
    layer_by_layer: bool = field(
        default=False,
        metadata=described("Both sides in the memory of one layer, without texts; done unasked where they do not fit."),
    )
