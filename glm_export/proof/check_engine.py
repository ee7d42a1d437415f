"""Prove an engine equal to what it was made of: the ONNX program in ONNX Runtime, or the checkpoint in PyTorch.

Our session and Polygraphy's own TensorRT runner are held to the same cases.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import RunResults
from polygraphy.datatype import DataType as PolygraphyType

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.inputs.call_layout import OwnLengths
from glm_export.progress import Progress
from glm_export.proof.cases import Case, parity_cases
from glm_export.proof.check import (
    CheckReport,
    bound_of,
    cache_dtype,
    candidate_not_finite,
    quantization_of,
    require_same_beginning,
    save_sides,
)
from glm_export.proof.compare import TOLERANCES, compare_runs
from glm_export.proof.controls import Question, run_controls
from glm_export.proof.measures.greedy import GreedyReport, greedy_agreement, token_text
from glm_export.proof.measures.positions import position_errors
from glm_export.proof.measures.tokens import token_parity
from glm_export.proof.options import CheckOptions
from glm_export.proof.origin import require_same_checkpoint
from glm_export.proof.runners import ReferenceRunner, SessionRunner, run_cases
from glm_export.proof.sides.reference import Reference, saved_reference
from glm_export.proof.sides.saved_run import SavedRun, askable
from glm_export.sessions.batch_invariance import recipe_of
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.program_layout import call_layout
from glm_export.sessions.session import Tensors
from glm_export.sessions.tensorrt.session import EngineSession, load_onto_device
from glm_export.sessions.tensorrt.step import LoadedEngine
from glm_export.sessions.torch import TorchSession
from glm_export.spec.dtypes import NUMPY_DTYPES
from glm_export.spec.signature import INPUT_IDS, Signature, decoder_signature

OURS, POLYGRAPHYS = "tensorrt", "polygraphy's TrtRunner"


def check_engine(
    engine: Engine,
    against: Checkpoint | OnnxProgram | SavedRun,
    options: CheckOptions | None = None,
    *,
    loaded: LoadedEngine | None = None,
    polygraphy: bool = True,
    progress: Progress | None = None,
) -> CheckReport:
    """Run the reference and the engine side by side.

    Args:
        engine: from :func:`glm_export.artifacts.engine.load_engine`.
        against: the checkpoint, run by PyTorch with the rounding of the engine's recipe; the exported folder; or a run
            that was saved of either, which asks its own cases.
        options: of them the reference's dtype, the tolerance, and where the run is saved.
        loaded: the engine in device memory, if it is.
        polygraphy: run the cases through Polygraphy's own runner, too (not bfloat16, which numpy has not).
        progress: shows calls, texts and controls.

    Raises:
        InputError: the engine was made of something else.
        EnvironmentMissingError: the engine will not load here.
    """
    program, options, recipe = engine.program, options or CheckOptions(), recipe_of(engine.program)
    tolerance = bound_of(program, recipe, options)
    if options.save_run is not None:
        require_writable(Path(options.save_run), force=False)
    with ExitStack() as stack:
        loaded = loaded or load_onto_device(engine)
        candidate = stack.enter_context(EngineSession(engine, loaded))
        side = _reference(engine, against, options.reference_dtype, stack)
        reference, canonical = side.said_by, canonical_of(program)
        looser = max(program.dtype, side.dtype, key=TOLERANCES.__getitem__)
        cases, not_asked = _cases(side, engine, candidate, canonical)
        runners = [ReferenceRunner(reference, program, canonical, side.name), SessionRunner(OURS, candidate, canonical)]
        if polygraphy and program.dtype in NUMPY_DTYPES:
            theirs = stack.enter_context(PolygraphySession(engine, loaded))
            runners.append(SessionRunner(POLYGRAPHYS, theirs, canonical))
        results = run_cases(runners, cases, progress)
        names, real = [case.name for case in cases], [OwnLengths.of(case.tensors) for case in cases]
        first, *others = (
            compare_runs(RunResults([results[0], other]), names, looser, tolerance, real) for other in list(results)[1:]
        )
        both = RunResults(list(results)[:2])
        named = [(case.name, case.tensors) for case in cases]
        if options.save_run is not None:
            save_sides(Path(options.save_run), side, program, both, cases)
        decode = token_text(candidate if isinstance(reference, SavedRun) else reference)
        greedy = _texts(side, engine, candidate, progress)
        lost = candidate_not_finite(first, candidate)
        question = Question(results=both, cases=cases, program=program, dtype=looser, tolerance=tolerance)
        controls = run_controls(question, candidate, progress=progress) if options.control else ()
    usual_bound = recipe.usual_for(program.config) if recipe is not None and looser == "float32" else None
    return CheckReport(
        parity=first, recipe=program.recipe,
        greedy_equal=greedy.equal if greedy else 0, greedy_total=greedy.total if greedy else 0,
        usual_bound=usual_bound, others=tuple(others), not_finite=lost, greedy=greedy, not_asked=not_asked,
        controls=controls, tokens=token_parity(results, named, decode), positions=position_errors(results, named),
    )  # fmt: skip


def _cases(
    side: Reference, engine: Engine, candidate: EngineSession, canonical: Signature
) -> tuple[list[Case], tuple[str, ...]]:
    """What is asked, within the engine's limits; and of a saved run's cases which it cannot be."""
    reference, program, limits = side.said_by, engine.program, engine.limits
    if isinstance(reference, SavedRun):
        return askable(reference.cases, program.signature)
    require_same_beginning(reference, candidate, cache_dtype(program, side.dtype))
    cases = parity_cases(
        reference, program.config, canonical, program.signature.cache, limits.max_context,
        rows=limits.max_batch, tokens=limits.prefill_tokens,
    )  # fmt: skip
    # What an integer cache keeps of a past, so that both sides begin from the same.
    return [replace(case, tensors=candidate.layout.rounded_past(case.tensors)) for case in cases], ()


def _texts(side: Reference, engine: Engine, candidate: EngineSession, progress: Progress | None) -> GreedyReport | None:
    """Texts of both sides; a saved run writes none."""
    if isinstance(side.said_by, SavedRun):
        return None
    limits, decode = engine.limits, token_text(side.said_by)
    return greedy_agreement(
        side.said_by,
        candidate,
        rows=limits.max_batch,
        max_tokens=limits.max_context,
        decode=decode,
        progress=progress,
    )


def canonical_of(program: OnnxProgram) -> Signature:
    """The canonical signature; numpy has no bfloat16, so it is float32 there."""
    dtype = program.dtype if program.dtype in NUMPY_DTYPES else "float32"
    return decoder_signature(program.config, dtype=dtype, logits=program.logits)


def _reference(engine: Engine, against: Checkpoint | OnnxProgram | SavedRun, dtype: str, stack: ExitStack) -> Reference:
    import torch

    if isinstance(against, SavedRun):
        return saved_reference(engine.program, against)
    if isinstance(against, OnnxProgram):
        require_same_program(engine, against)
        session = stack.enter_context(OrtSession(against))
        # An engine computes what its program does: its dtype's bound is for both.
        return Reference(said_by=session, name="onnxruntime", dtype=dtype, recipe=engine.program.recipe)
    require_same_checkpoint(engine.program, against)
    recipe = recipe_of(engine.program)
    if recipe is not None and recipe.rounding == "gptq":
        raise InputError(
            f"the integers of {recipe.name} are in the exported folder {engine.folder} was built of; check against that"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_session = stack.enter_context(TorchSession(against, dtype, device, quantization_of(engine.program)))
    return Reference(said_by=torch_session, name="pytorch", dtype=dtype, recipe=engine.program.recipe)


def require_same_program(engine: Engine, program: OnnxProgram) -> None:
    """See that an engine was built of an exported folder.

    Raises:
        InputError: it was not; what differs is named.
    """
    built_of = engine.program.manifest
    for key in ("source_sha256", "dialect", "dtype", "recipe", "logits", "created"):
        if built_of.get(key) != program.manifest.get(key):
            raise InputError(
                f"{engine.folder} was built of another export than {program.folder} ({key} differs); "
                "give the one it was built of, or its checkpoint"
            )


class PolygraphySession:
    """An engine run by Polygraphy, one runner for each profile, in the canonical program's layout."""

    def __init__(self, engine: Engine, loaded: LoadedEngine) -> None:
        self._engine = engine
        self._layout = call_layout(engine.program.signature, engine.folder)
        runner = loaded.tensorrt.polygraphy().TrtRunner
        self._runners = [
            runner(loaded.engine, name=profile.name, optimization_profile=index)
            for index, profile in enumerate(engine.profiles)
        ]

    def __enter__(self) -> Self:
        for runner in self._runners:
            runner.activate()
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners:
            runner.deactivate()

    def run(self, tensors: Tensors) -> Tensors:
        """One call, rows in groups of as many as the profile takes."""
        limits, given = self._engine.limits, self._layout.to_program(tensors)
        batch, new = given[INPUT_IDS].shape
        prefill, decode = self._runners
        runner, group = (decode, limits.max_batch) if new == 1 else (prefill, limits.prefill_batch)
        parts = [
            # Outputs are memory of the runner's: the next call writes over it.
            {name: np.array(array) for name, array in runner.infer(self._rows(given, runner, start, group)).items()}
            for start in range(0, batch, group)
        ]
        outputs: Tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self._layout.to_canonical(outputs, tensors)

    def _rows(self, given: Tensors, runner: BaseRunner, start: int, group: int) -> Tensors:
        dtypes = {name: entry.dtype for name, entry in runner.get_input_metadata().items()}
        return {
            name: np.ascontiguousarray(array[start : start + group]).astype(
                PolygraphyType.to_dtype(dtypes[name], "numpy"), copy=False
            )
            for name, array in given.items()
        }
