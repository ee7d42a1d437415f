"""What is asked of a build: one record from the command line to the builder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from glm_export import families
from glm_export.engines.options import ENTROPY, MIN_MAX, BuildOptions
from glm_export.engines.vendor import RUNTIMES
from glm_export.spec.optimization_profile import Limits
from glm_export.spec.option import described, listed

if TYPE_CHECKING:
    from glm_export.calibration.ranges import Ranges
    from glm_export.checkpoints.checkpoint import Checkpoint


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitInt8:
    """INT8 that TensorRT up to 10 chooses by itself, from measured ranges."""

    algorithm: str = field(
        default=ENTROPY, metadata=described("Of implicit INT8.", choices=(ENTROPY, MIN_MAX), flag="calibrator")
    )
    cache: Path | None = field(
        default=None,
        metadata=described("Measured before; default: the program's own, if it has one.", flag="calibration-cache"),
    )
    corpus: str = field(
        default="default",
        metadata=described("What implicit INT8 is measured on: a .txt, .jsonl or .json, or default, poems, technical."),
    )


class CheckpointKeywords(TypedDict, total=False):
    """How a checkpoint is exported that an engine is built of; None and what is missing is the usual."""

    dtype: str | None
    recipe: str | None
    ranges: Path | str | Ranges | None


class BuildKeywords(TypedDict, total=False):
    """The fields of :class:`BuildRequest` besides source and folder, as keywords."""

    runtime: str | None
    max_batch: int
    max_context: int | None
    prefill_tokens: int | None
    prefill_batch: int | None
    export: CheckpointKeywords
    family: str | None
    options: BuildOptions
    implicit_int8: ImplicitInt8 | None
    timing_cache: Path | None
    force: bool


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build an engine of, for which limits, where and how.

    ``source``: an exported folder of dialect ``tensorrt`` or ``portable``; or a checkpoint, which is exported first.
    """

    source: str | Path | Checkpoint
    out: Path
    runtime: str | None = field(
        default=None,
        metadata=described("Default: tensorrt where it can build, else tensorrt-rtx.", choices=RUNTIMES),
    )
    max_batch: int = field(default=4, metadata=described("Rows of a decode step."))
    max_context: int | None = field(
        default=None,
        metadata=described(
            "Tokens of a row, written and read; default: what the program holds. With dialect tensorrt a decode step "
            "reads all of them, filled or not."
        ),
    )
    prefill_tokens: int | None = field(
        default=None, metadata=described("Tokens read at once; longer prompts take several calls. Default: 512.")
    )
    prefill_batch: int | None = field(
        default=None, metadata=described("Rows read at once. Default: 1; with a growing cache --max-batch.")
    )
    export: CheckpointKeywords = field(
        default_factory=lambda: CheckpointKeywords(), metadata=described("For a checkpoint: dtype, recipe and ranges.")
    )
    family: str | None = field(
        default=None, metadata=described("Where config.json leaves it open.", choices=families.names)
    )
    options: BuildOptions = field(default_factory=BuildOptions, metadata=described("How to build."))
    implicit_int8: ImplicitInt8 | None = field(
        default=None, metadata=described("TensorRT up to 10, dialect portable: it chooses what is INT8.")
    )
    timing_cache: Path | None = field(
        default=None, metadata=described("Kernels measured before; default: in ~/.cache/glm-export.")
    )
    force: bool = field(default=False, metadata=described("Replace an engine."))

    def __post_init__(self) -> None:
        unknown = self.export.keys() - CheckpointKeywords.__annotations__.keys()
        if unknown:
            known = ", ".join(CheckpointKeywords.__annotations__)
            raise TypeError(f"a build's export has no option {', '.join(map(repr, sorted(unknown)))}; known: {known}")

    @property
    def given_to_export(self) -> dict[str, Any]:
        """Options of the export that were given."""
        return {name: value for name, value in self.export.items() if value is not None}

    def require_consistent(self) -> None:
        """See what the limits say of each other; that is known before anything is exported.

        Raises:
            InputError: they contradict each other.
        """
        tokens = 1 if self.prefill_tokens is None else self.prefill_tokens
        context = tokens if self.max_context is None else self.max_context
        rows = 1 if self.prefill_batch is None else self.prefill_batch
        Limits(max_batch=self.max_batch, max_context=context, prefill_tokens=tokens, prefill_batch=rows)
