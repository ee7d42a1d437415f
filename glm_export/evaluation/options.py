"""What is asked of a measurement on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from glm_export.calibration.options import TextKeywords, TextOptions
from glm_export.spec.dtypes import DTYPES, DTypeName
from glm_export.spec.option import described, listed


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
