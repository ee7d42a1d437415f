"""What an engine is built from: an exported program, or a checkpoint that is exported on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.engines.network import IN_PLACE, dialect_for
from glm_export.engines.vendor import TensorRT
from glm_export.errors import InputError
from glm_export.progress import Progress

if TYPE_CHECKING:
    from glm_export.calibration.ranges import Ranges
    from glm_export.checkpoints.checkpoint import Checkpoint

DTYPE = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported before it is built. None is the usual: float16, no recipe, the model's context."""

    dtype: str | None = None
    recipe: str | None = None
    ranges: Ranges | None = None
    max_length: int | None = None

    @property
    def given(self) -> list[str]:
        """Those that say how to export."""
        return [name for name in ("dtype", "recipe", "ranges") if getattr(self, name) is not None]


@contextmanager
def program_to_build(
    source: Path | Checkpoint, tensorrt: TensorRT, options: ExportOptions, out: Path, progress: Progress
) -> Iterator[OnnxProgram]:
    """An exported folder as it is; of a checkpoint a program in a folder beside ``out`` that is removed afterwards.

    Args:
        source: an exported folder, or a checkpoint.
        tensorrt: settles the dialect.
        options: for a checkpoint.
        out: where the engine goes.
        progress: shows the export.

    Raises:
        InputError: ``source`` is an engine, or options of the export were given for an exported folder.
        GlmExportError: see :func:`glm_export.exporter.export.export`.
    """
    if isinstance(source, Path):
        if options.given:
            raise InputError(
                f"{source} is exported already: --{', --'.join(options.given)} cannot change it; "
                "give the checkpoint, or export with them"
            )
        yield load_program(source)
        return
    context = source.config.max_positions
    if options.max_length is not None and options.max_length > context:
        raise InputError(f"--max-context is {options.max_length}, the model's context {context}; ask for less")
    # An exported folder is built without PyTorch.
    from glm_export.exporter import export as exporter

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.program-", dir=out.parent) as folder:
        dialect = dialect_for(tensorrt)
        yield exporter.export(
            source, Path(folder) / "program", dialect=dialect, dtype=options.dtype or DTYPE, logits="last",
            recipe=options.recipe, ranges=options.ranges,
            max_length=options.max_length if dialect == IN_PLACE else None, progress=progress,
        )  # fmt: skip
