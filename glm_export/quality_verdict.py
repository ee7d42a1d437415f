"""A quality report judged: what exceeded the budget, and which layer cost how much."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from glm_export.artifacts import OnnxProgram
from glm_export.calibration.corpus import Corpus
from glm_export.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.progress import Progress
from glm_export.proof import quantization_of
from glm_export.quality import QualityReport
from glm_export.sensitivity import LayerCost, sensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityVerdict:
    """``corpus``: its provenance. ``broken``: a sentence for each limit exceeded; None where there was no budget."""

    report: QualityReport
    corpus: dict[str, Any]
    broken: tuple[str, ...] | None = None
    costs: tuple[LayerCost, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.report.to_json() | {
            "corpus": self.corpus,
            "broken": None if self.broken is None else list(self.broken),
            "costs": None if self.costs is None else [asdict(cost) for cost in self.costs],
        }


def costs_by_layer(
    program: OnnxProgram,
    checkpoint: Checkpoint,
    corpus: Corpus,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> tuple[LayerCost, ...]:
    """What each layer of a quantized program costs alone.

    Raises:
        InputError: the program is not quantized.
    """
    quantization = quantization_of(program)
    if quantization is None:
        raise InputError(f"{program.folder} is not quantized; there is nothing to tell apart by layer")
    return sensitivity(checkpoint, quantization, corpus, dtype=dtype, progress=progress)
