"""What an engine is built from: an exported program, or a checkpoint that is exported on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glm_export.artifacts.output_folder import scratch_folder
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.deployment.request import BuildRequest
from glm_export.engines.network import dialect_for
from glm_export.engines.vendor import TensorRT
from glm_export.errors import InputError
from glm_export.exporter.options import ExportOptions
from glm_export.progress import Progress
from glm_export.spec.option import merged

if TYPE_CHECKING:
    from glm_export.checkpoints.checkpoint import Checkpoint

from glm_export.spec.signature import Cache

DTYPE = "float16"
"""Of a checkpoint that is exported to be built, unless told otherwise."""


@contextmanager
def program_to_build(
    source: Path | Checkpoint, tensorrt: TensorRT, request: BuildRequest, progress: Progress
) -> Iterator[OnnxProgram]:
    """An exported folder as it is; of a checkpoint a program in a folder beside ``out`` that is removed afterwards.

    Args:
        source: an exported folder, or a checkpoint.
        tensorrt: settles the dialect.
        request: says how a checkpoint is exported, and where the engine goes.
        progress: shows the export.

    Raises:
        InputError: options of the export were given for an exported folder.
        GlmExportError: see :func:`glm_export.exporter.export.export`.
    """
    given, length, out = request.given_to_export, request.max_context, request.out
    if isinstance(source, Path):
        if given:
            raise InputError(
                f"{source} is exported already: --{', --'.join(given)} cannot change it; "
                "give the checkpoint, or export with them"
            )
        yield load_program(source)
        return
    context = source.config.max_columns
    if length is not None and length > context:
        raise InputError(f"--max-context is {length}, the model's context {context}; ask for less")
    # An exported folder is built without PyTorch.
    from glm_export.exporter import export as exporter

    with scratch_folder(out, "program") as folder:
        dialect = dialect_for(tensorrt)
        usual = ExportOptions(
            dialect=dialect.name,
            dtype=DTYPE,
            logits="last",
            max_length=length if dialect.cache(source.config) is Cache.STATIC else None,
        )
        yield exporter.export(source, folder / "program", merged(ExportOptions, usual, given), progress=progress)
