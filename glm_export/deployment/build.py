"""Engines in a few calls; the command line is made of the same ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from glm_export import api
from glm_export.artifacts.engine import Engine
from glm_export.artifacts.open import Kind, open_artifact
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.trt_cache import CALIBRATION_CACHE
from glm_export.deployment.explain import explain
from glm_export.deployment.request import BuildKeywords, BuildRequest, ImplicitInt8
from glm_export.deployment.source import program_to_build
from glm_export.engines import implicit_int8 as implicit, vendor
from glm_export.engines.builder import BuildPlan, build_engine, plan_build
from glm_export.engines.implicit_int8 import CalibratorFactory
from glm_export.engines.profiles import resolve_limits
from glm_export.errors import InputError
from glm_export.machine.gpu import has_driver
from glm_export.machine.scratch import ScratchFolder
from glm_export.progress import NullProgress, Progress
from glm_export.spec.optimization_profile import PREFILL
from glm_export.spec.option import merged, require_known, takes

if TYPE_CHECKING:
    from glm_export.checkpoints.checkpoint import Checkpoint

TIMING_CACHE = Path("~/.cache/glm-export/tensorrt-timing.cache")


def usual_runtime() -> str:
    """TensorRT where it is installed and can build, TensorRT-RTX otherwise."""
    return vendor.TENSORRT if has_driver() and vendor.installed(vendor.TENSORRT) is not None else vendor.TENSORRT_RTX


@takes(BuildRequest)
def build(
    source: str | Path | Checkpoint,
    out: str | Path,
    *,
    progress: Progress | None = None,
    on_plan: Callable[[BuildPlan], None] = lambda _: None,
    **keywords: Unpack[BuildKeywords],
) -> Engine:
    """Build a TensorRT engine; see :func:`build_requested`.

    Args:
        source: an exported folder of dialect ``tensorrt`` or ``portable``; or a checkpoint, which is exported first.
        out: the folder to write.
        progress: shows the export's steps and the builder's phases.
        on_plan: is told the plan beforehand.
        **keywords: what else a :class:`BuildRequest` has.
    """
    request = merged(BuildRequest, None, {"source": source, "out": Path(out), **keywords})
    return build_requested(request, progress=progress, on_plan=on_plan)


def build_requested(
    request: BuildRequest,
    *,
    progress: Progress | None = None,
    on_plan: Callable[[BuildPlan], None] = lambda _: None,
) -> Engine:
    """Build the TensorRT engine that is asked for.

    Args:
        request: what of, and how; the runtime left open is :func:`usual_runtime`, a timing cache :data:`TIMING_CACHE`,
            limits what :func:`glm_export.engines.profiles.resolve_limits` says.
        progress: shows the export's steps and the builder's phases.
        on_plan: is told the plan beforehand.

    Raises:
        InputError: an option does not fit, the parser refuses a node, or ``out`` exists.
        EnvironmentMissingError: the runtime, a GPU, disk or memory is missing, or the builder gives up.
    """
    progress = progress or NullProgress()
    source = _opened(request)
    request = replace(request, out=_writable(request, source))
    tensorrt = _ready(request)
    request.require_consistent()
    with (
        program_to_build(source, tensorrt, request, progress) as program,
        closing(ScratchFolder()) as scratch,
    ):
        plan = _planned(program, tensorrt, request)
        cache = scratch.path / CALIBRATION_CACHE
        calibrator = _calibrator(tensorrt, plan, request.implicit_int8, cache) if request.implicit_int8 else None
        on_plan(plan)
        return build_engine(
            plan, request.out, tensorrt, calibrator=calibrator, calibration_cache=cache, force=request.force,
            progress=progress, timing_cache=(request.timing_cache or TIMING_CACHE).expanduser(),
        )  # fmt: skip


def explain_requested(request: BuildRequest) -> tuple[BuildPlan, str]:
    """What a build would make, and a script that repeats it and compares its engine without this package.

    Nothing is built, and a runtime that builds with a GPU needs none for this.

    Args:
        request: what of, and how; ``out`` may hold the engine already, which is compared as well.

    Raises:
        InputError: an option does not fit, or the source is a checkpoint, of which there is no file to name.
        EnvironmentMissingError: the runtime is missing.
    """
    source = _opened(request)
    if not isinstance(source, Path):
        raise InputError("--explain names the files of an exported folder, found a checkpoint; export it first")
    if request.implicit_int8 is not None:
        raise InputError("--explain repeats what the program says; leave --implicit-int8 out")
    tensorrt = vendor.load(request.runtime or usual_runtime())
    request.options.require_offered(tensorrt)
    request.require_consistent()
    with program_to_build(source, tensorrt, request, NullProgress()) as program:
        plan = _planned(program, tensorrt, request)
        return plan, explain(plan, tensorrt, request.out)


def _planned(program: OnnxProgram, tensorrt: vendor.TensorRT, request: BuildRequest) -> BuildPlan:
    if program.signature.hidden_states:
        raise InputError(
            f"{program.folder} puts out hidden states, and engines put out logits and the cache alone; export it "
            "without --hidden-states for an engine"
        )
    limits = resolve_limits(
        program.signature, program.config.max_columns, max_batch=request.max_batch,
        max_context=request.max_context, prefill_tokens=request.prefill_tokens, prefill_batch=request.prefill_batch,
    )  # fmt: skip
    return plan_build(program, request.out, tensorrt, limits, request.options)


def _ready(request: BuildRequest) -> vendor.TensorRT:
    """The runtime, once nothing speaks against building with it: an export takes minutes."""
    tensorrt = vendor.load(request.runtime or usual_runtime())
    request.options.require_offered(tensorrt)
    if not tensorrt.rtx:
        tensorrt.require_driver(f"building with {tensorrt.name}")
    if request.implicit_int8 is not None:
        implicit.require_implicit(tensorrt)
    return tensorrt


def _writable(request: BuildRequest, source: Path | Checkpoint) -> Path:
    sources = [source] if isinstance(source, Path) else source.folders
    return require_writable(request.out, force=request.force, sources=sources)


def _opened(request: BuildRequest) -> Path | Checkpoint:
    source, family = request.source, request.family
    if not isinstance(source, str | Path):
        return source
    artifact = open_artifact(source)
    folder = artifact.path
    if artifact.kind is Kind.ENGINE:
        raise InputError(f"{folder} is an engine already; give the program or checkpoint it was built from")
    if artifact.kind is not Kind.PROGRAM:
        return api.open_checkpoint(source, family)
    if family is not None:
        raise InputError(f"{source} is exported already: --family cannot change it; leave it out")
    return folder


def _calibrator(tensorrt: vendor.TensorRT, plan: BuildPlan, asked: ImplicitInt8, cache: Path) -> CalibratorFactory:
    program = plan.program
    implicit.require_float_program(program, tensorrt)
    require_known(asked, "algorithm")
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
