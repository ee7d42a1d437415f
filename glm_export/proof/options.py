"""What is asked of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from glm_export.calibration.options import Row
from glm_export.spec.dtypes import DTYPES, DTypeName
from glm_export.spec.option import described, listed


class CheckKeywords(TypedDict, total=False):
    """The fields of :class:`CheckOptions`, as keywords."""

    reference_dtype: DTypeName
    corpus: str | Sequence[Row] | None
    max_samples: int
    control: bool
    layers: bool
    layer_by_layer: bool
    evidence: str | None
    save_run: str | None
    tolerance: float | None


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How a program is held to its reference, and what is looked for where it differs."""

    reference_dtype: str = field(
        default="float32",
        metadata=described("Of PyTorch; the checkpoint's own needs no copy of its weights.", choices=DTYPES),
    )
    corpus: str | Sequence[Row] | None = field(
        default=None,
        metadata=described("Also compare its texts: default, poems, technical, or a .txt or .jsonl file."),
    )
    max_samples: int = field(default=4, metadata=described("Texts of the corpus that are compared.", least=1))
    control: bool = field(
        default=False, metadata=described("Also run broken variants, which must fail; says what each reads.")
    )
    layers: bool = field(
        default=False, metadata=described("Compare layer by layer, too; done unasked where the check fails.")
    )
    layer_by_layer: bool = field(
        default=False, metadata=described("Both sides in the memory of one layer: for models that do not fit.")
    )
    evidence: str | None = field(
        default=None,
        metadata=described("New folder for the first node that differs, with its inputs, as Polygraphy runs it."),
    )
    save_run: str | None = field(
        default=None,
        metadata=described("New folder for what both sides said; --against it compares later, on any machine."),
    )
    tolerance: float | None = field(
        default=None,
        metadata=described("Allowed difference, as a share of the largest value; its dtype's where left out."),
    )
