"""Engines in a few calls; the command line is made of the same ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export import api
from glm_export.artifacts.engine import Engine
from glm_export.artifacts.open import Kind, open_artifact
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.trt_cache import CALIBRATION_CACHE
from glm_export.deployment.source import ExportOptions, program_to_build
from glm_export.engines import implicit_int8 as implicit, vendor
from glm_export.engines.builder import BuildPlan, build_engine, plan_build
from glm_export.engines.implicit_int8 import CalibratorFactory
from glm_export.engines.options import BuildOptions
from glm_export.engines.profiles import resolve_limits
from glm_export.errors import InputError
from glm_export.machine.gpu import has_driver
from glm_export.progress import NullProgress, Progress
from glm_export.spec.optimization_profile import PREFILL, Limits

if TYPE_CHECKING:
    from glm_export.checkpoints.checkpoint import Checkpoint

MAX_BATCH = 4
TIMING_CACHE = Path("~/.cache/glm-export/tensorrt-timing.cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitInt8:
    """INT8 that TensorRT up to 10 chooses by itself, from measured ranges.

    ``algorithm``: ``entropy`` or ``min-max``. ``cache``: a calibration cache to read; None takes the program's own
    where it has one, and measures on ``corpus`` otherwise.
    """

    algorithm: str = implicit.ENTROPY
    cache: Path | None = None
    corpus: str = "default"


def usual_runtime() -> str:
    """TensorRT where it is installed and can build, TensorRT-RTX otherwise."""
    return vendor.TENSORRT if has_driver() and vendor.installed(vendor.TENSORRT) is not None else vendor.TENSORRT_RTX


def build(
    source: str | Path | Checkpoint,
    out: str | Path,
    *,
    runtime: str | None = None,
    max_batch: int = MAX_BATCH,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    prefill_batch: int | None = None,
    export: Mapping[str, Any] | None = None,
    options: BuildOptions | None = None,
    implicit_int8: ImplicitInt8 | None = None,
    timing_cache: Path | None = None,
    family: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[BuildPlan], None] = lambda _: None,
) -> Engine:
    """Build a TensorRT engine.

    Args:
        source: an exported folder of dialect ``tensorrt`` or ``portable``; or a checkpoint, which is exported first.
        out: the folder to write.
        runtime: ``tensorrt`` or ``tensorrt-rtx``; None takes :func:`usual_runtime`.
        max_batch: rows of a decode step.
        max_context: tokens of a row; for what None is, see :func:`glm_export.engines.profiles.resolve_limits`.
        prefill_tokens: tokens read at once.
        prefill_batch: rows read at once.
        export: ``dtype``, ``recipe`` and ``ranges`` for a checkpoint.
        options: see :class:`BuildOptions`.
        implicit_int8: for TensorRT up to 10 and a float program of dialect ``portable``.
        timing_cache: a file of measured kernels; None takes :data:`TIMING_CACHE`.
        family: of a checkpoint, where config.json leaves it open.
        force: replace a folder.
        progress: shows the export's steps and the builder's phases.
        on_plan: is told the plan beforehand.

    Raises:
        InputError: an option does not fit, the parser refuses a node, or ``out`` exists.
        EnvironmentMissingError: the runtime, a GPU, disk or memory is missing, or the builder gives up.
    """
    out, options, progress = Path(out), options or BuildOptions(), progress or NullProgress()
    asked = {**(export or {}), "max_length": max_context}
    tensorrt = _ready(runtime, out, options, implicit_int8, force=force)
    _require_consistent(max_batch, max_context, prefill_tokens, prefill_batch)
    with (
        program_to_build(_opened(source, out, family), tensorrt, ExportOptions(**asked), out, progress) as program,
        tempfile.TemporaryDirectory(prefix="glm-export-") as folder,
    ):
        limits = resolve_limits(
            program.signature, program.config.max_positions, max_batch=max_batch, max_context=max_context,
            prefill_tokens=prefill_tokens, prefill_batch=prefill_batch,
        )  # fmt: skip
        plan = plan_build(program, out, tensorrt, limits, options)
        cache = Path(folder) / CALIBRATION_CACHE
        calibrator = _calibrator(tensorrt, plan, implicit_int8, cache) if implicit_int8 else None
        return build_engine(
            plan, out, tensorrt, options, calibrator=calibrator, calibration_cache=cache, force=force,
            progress=progress, on_plan=on_plan, timing_cache=(timing_cache or TIMING_CACHE).expanduser(),
        )  # fmt: skip


def _ready(
    runtime: str | None, out: Path, options: BuildOptions, asked: ImplicitInt8 | None, *, force: bool
) -> vendor.TensorRT:
    """The runtime, once nothing speaks against building with it: an export takes minutes."""
    require_writable(out, force=force)
    tensorrt = vendor.load(runtime or usual_runtime())
    options.require_offered(tensorrt)
    if not tensorrt.rtx:
        tensorrt.require_driver(f"building with {tensorrt.name}")
    if asked is not None:
        implicit.require_implicit(tensorrt)
    return tensorrt


def _require_consistent(
    max_batch: int, max_context: int | None, prefill_tokens: int | None, prefill_batch: int | None
) -> None:
    """What limits say of each other is known before anything is exported."""
    tokens = 1 if prefill_tokens is None else prefill_tokens
    context = tokens if max_context is None else max_context
    rows = 1 if prefill_batch is None else prefill_batch
    Limits(max_batch=max_batch, max_context=context, prefill_tokens=tokens, prefill_batch=rows)


def _opened(source: str | Path | Checkpoint, out: Path, family: str | None) -> Path | Checkpoint:
    if not isinstance(source, str | Path):
        return source
    artifact = open_artifact(source)
    folder = artifact.path
    if artifact.kind is Kind.ENGINE:
        raise InputError(f"{folder} is an engine already; give the program or checkpoint it was built from")
    if artifact.kind is not Kind.PROGRAM:
        return api.open_checkpoint(source, family)
    if folder.resolve() == out.resolve():
        raise InputError(f"{out} is the exported folder itself; give another --out")
    if family is not None:
        raise InputError(f"{source} is exported already: --family cannot change it; leave it out")
    return folder


def _calibrator(tensorrt: vendor.TensorRT, plan: BuildPlan, asked: ImplicitInt8, cache: Path) -> CalibratorFactory:
    program = plan.program
    implicit.require_float_program(program, tensorrt)
    if asked.algorithm not in implicit.CALIBRATORS:
        raise InputError(f"calibrator {asked.algorithm!r} is unknown; known: {', '.join(implicit.CALIBRATORS)}")
    own = program.folder / CALIBRATION_CACHE
    source = asked.cache or (own if own.is_file() else None)
    if source is not None:
        implicit.write_cache_for(tensorrt, source, asked.algorithm, cache)
        return implicit.calibrator(tensorrt, program, cache, algorithm=asked.algorithm)
    profile = next(profile for profile in plan.profiles if profile.name == PREFILL)
    _, usual, _ = profile.shapes["input_ids"]
    rows = implicit.packed_rows(_ids(program, asked.corpus), usual[1])
    return implicit.calibrator(tensorrt, program, cache, algorithm=asked.algorithm, rows=rows)


def _ids(program: OnnxProgram, corpus: str) -> list[tuple[int, ...]]:
    from glm_export.calibration.corpus.load import load_corpus
    from glm_export.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(program.folder, program.config)
    return [sample.prompt.ids for sample in load_corpus(corpus, tokenizer, program.config).samples]
