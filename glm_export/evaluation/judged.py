"""One program's quality: whole models or one layer at a time, as memory allows or was asked; held to a budget."""

from __future__ import annotations

import logging
from collections.abc import Callable

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.evaluation.budget import Budget
from glm_export.evaluation.layer_costs import costs_by_layer
from glm_export.evaluation.layerwise.quality import measure_layer_by_layer
from glm_export.evaluation.measure import measure
from glm_export.evaluation.options import QualityOptions
from glm_export.evaluation.report import QualityVerdict
from glm_export.machine.memory import available_memory
from glm_export.progress import Progress
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession, copied_bytes

logger = logging.getLogger(__name__)


def judged_quality(
    loaded: OnnxProgram | Engine,
    checkpoint: Checkpoint,
    corpus: Corpus,
    limits: Budget | None,
    options: QualityOptions,
    load: Callable[[OnnxProgram | Engine], Session],
    progress: Progress | None = None,
) -> QualityVerdict:
    """Measure a program on text.

    Args:
        loaded: the program, or an engine of it.
        checkpoint: what it was made of.
        corpus: the text.
        limits: what may be lost.
        options: how.
        load: opens a session of the program.
        progress: shows how far it is.

    Raises:
        InputError: what is asked cannot be measured layer by layer.
    """
    exported = loaded.program if isinstance(loaded, Engine) else loaded
    dtype = options.reference_dtype
    layered = options.layer_by_layer
    if not layered and not isinstance(loaded, Engine) and too_large(checkpoint, dtype, besides=_bytes_of(exported)):
        layered = True
        logger.warning("both models do not fit this memory: measured layer by layer, and neither writes texts")
    how = "layer by layer" if layered else "whole models"
    logger.info("%d rows, %d tokens of corpus %s: %s", len(corpus.samples), corpus.tokens, corpus.name, how)
    if layered:
        _require_possible(loaded, limits)
        report = measure_layer_by_layer(exported, checkpoint, corpus, dtype=dtype, progress=progress)
    else:
        with TorchSession(checkpoint, dtype) as reference, load(loaded) as candidate:
            report = measure(reference, candidate, corpus, progress=progress)
    costs = None
    if options.by_layer:
        alone = layered or too_large(checkpoint, dtype, copies=2)
        costs = costs_by_layer(exported, checkpoint, corpus, dtype, layer_by_layer=alone, progress=progress)
    broken = tuple(limits.broken(report)) if limits is not None else None
    return QualityVerdict(report=report, corpus=corpus.to_json(), broken=broken, costs=costs)


def too_large(checkpoint: Checkpoint, dtype: str, *, copies: int = 1, besides: int = 0) -> bool:
    """Whether so many whole models in PyTorch, and bytes besides, are more than the machine has to give."""
    available = available_memory()
    return available is not None and copies * copied_bytes(checkpoint, dtype) + besides > available


def _bytes_of(program: OnnxProgram) -> int:
    return sum(path.stat().st_size for path in program.folder.glob(f"{program.model_path.name}*"))


def _require_possible(loaded: OnnxProgram | Engine, limits: Budget | None) -> None:
    if isinstance(loaded, Engine):
        raise InputError("an engine is one whole, and cannot be measured layer by layer; leave --layer-by-layer out")
    if limits is not None and "recall" in dict(limits.limits):
        raise InputError(
            "recall needs texts, and layer by layer none are written; leave it out of the budget, or measure the "
            "program on a machine that holds it"
        )
