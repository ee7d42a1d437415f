"""Prove an ONNX program equal to the PyTorch reference: Polygraphy runs both, ``compare`` judges."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from glm_export.artifacts.initial_cache import INITIAL_CACHE
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import PROMPT_LAYERS, OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.keep import KEPT
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.recipe import Recipe
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import ComparisonFailedError
from glm_export.generation.finite import way_out
from glm_export.inputs.call_layout import OwnLengths, without_padding
from glm_export.progress import Progress
from glm_export.proof.cases import Case, parity_cases, text_cases
from glm_export.proof.company import CompanyReport, measure_company, outlier_token
from glm_export.proof.compare import BEGINNING_TOLERANCES, TOLERANCES, ParityReport, compare_runs
from glm_export.proof.controls import Control, Question, run_controls
from glm_export.proof.layers.examine import LayersReport, examine_layers
from glm_export.proof.layers.reference import LayeredReference
from glm_export.proof.measures.greedy import GreedyReport, greedy_agreement, token_text
from glm_export.proof.measures.positions import PositionErrors, position_errors
from glm_export.proof.measures.tokens import TokenParity, token_parity
from glm_export.proof.options import CheckOptions
from glm_export.proof.runners import SessionRunner, canonical_signature, run_both
from glm_export.proof.sides.reference import Reference, open_reference, require_same_sizes
from glm_export.proof.sides.saved_run import SavedRun, SideFacts, askable, save_run
from glm_export.proof.stored_integers import ProgramIntegers
from glm_export.sessions.batch_invariance import recipe_of
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from glm_export.spec.signature import LOGITS, Cache, past_names
from glm_export.spec.summary import Summarized

SCHEMA = "glm-export/check/1"
"""Of :meth:`CheckReport.to_json`: raised where a name goes or changes its meaning, not where one comes."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CheckReport(Summarized):
    """Parity of single calls, and whether both sides write the same greedy tokens, each with its own cache."""

    parity: ParityReport
    greedy_equal: int
    greedy_total: int
    recipe: str | None = None
    usual_bound: float | None = None
    others: tuple[ParityReport, ...] = ()
    """The same cases through other runners of the same program."""
    company: CompanyReport | None = None
    """Whether a row answers the same beside others; None where the program takes one row alone."""
    not_finite: str | None = None
    """Where the program computes NaN or infinity while the reference computes numbers, and what to do."""
    tokens: tuple[TokenParity, ...] = ()
    """Every real token's prediction on both sides."""
    positions: tuple[PositionErrors, ...] = ()
    """Every output's error, column by column."""
    greedy: GreedyReport | None = None
    """The texts that ``greedy_equal`` of ``greedy_total`` was counted on."""

    controls: tuple[Control, ...] = ()
    """Broken variants that were asked the same, and must fail."""
    not_asked: tuple[str, ...] = ()
    """Cases of a saved run that the program cannot be asked, and why."""
    layers: LayersReport | None = None
    """What each layer adds, and who is the first to add too much; None where nobody asked."""

    @property
    def usual(self) -> float:
        """The median over cases of the smallest passing tolerance: what a case needs where no value is a tie."""
        worst: dict[str, float] = {}
        for output in self.parity.outputs:
            worst[output.case] = max(worst.get(output.case, 0.0), output.required_tolerance)
        return float(np.median(list(worst.values())))

    @property
    def passed(self) -> bool:
        """Outputs within tolerance; in float32 the greedy tokens equal too, or the usual where the recipe bounds it."""
        within = self.parity.passed and all(other.passed for other in self.others)
        within = within and (self.usual_bound is None or self.usual <= self.usual_bound)
        within = within and (self.company is None or self.company.passed)
        within = within and all(control.noticed for control in self.controls)
        exact = self.parity.dtype == "float32" and self.recipe is None
        return within and (not exact or self.greedy_equal == self.greedy_total)

    def summary(self) -> dict[str, str]:
        """Who was held to whom, and how close they came."""
        parity = self.parity
        told = {
            "verdict": "passed" if self.passed else "FAILED",
            "candidate": parity.candidate,
            "reference": parity.reference,
            "dtype": parity.dtype,
            "needed": f"{parity.required_tolerance:.1e} of {parity.outputs[0].tolerance:.0e} allowed",
        }
        if self.recipe is not None:
            told["recipe"] = self.recipe
        if self.greedy_total:
            told["greedy tokens equal"] = f"{self.greedy_equal} of {self.greedy_total}"
        return told

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {"schema": SCHEMA} | self.parity.to_json() | {
            "passed": self.passed, "recipe": self.recipe, "usual": self.usual, "usual_bound": self.usual_bound,
            "greedy_tokens_equal": self.greedy_equal, "greedy_tokens": self.greedy_total,
            "others": [other.to_json() for other in self.others], "not_finite": self.not_finite,
            "company": None if self.company is None else self.company.to_json(),
            "tokens": [token.to_json() for token in self.tokens],
            "positions": [output.to_json() for output in self.positions],
            "greedy": None if self.greedy is None else self.greedy.to_json(),
            "controls": [control.to_json() for control in self.controls], "not_asked": list(self.not_asked),
            "layers": None if self.layers is None else self.layers.to_json(),
        }  # fmt: skip


def check(
    program: OnnxProgram,
    against: Checkpoint | OnnxProgram | SavedRun,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Run the reference and the ONNX program side by side.

    The reference of a quantized program computes with the weights its recipe keeps, in floating point: so what
    differs is the rounding of activations, and any defect. How much the recipe itself costs is another question.

    Args:
        program: an exported folder, or another's file (:func:`glm_export.proof.sides.foreign.foreign_program`).
        against: what it was exported from, run by PyTorch; another program of the same sizes, run as it is; or a run
            that was saved, which asks its own cases.
        options: with float16 or bfloat16 as the reference's dtype the bound is that dtype's. Where the program fails
            against a checkpoint its layers are looked at as well.
        progress: shows calls of both sides, controls, texts, rows in company; and layers, where they are looked at.

    Raises:
        InputError: the program was exported from another checkpoint, or has other sizes; or a folder to write exists.
        CheckpointError: the checkpoint's tensors do not fit.
        EnvironmentMissingError: no runtime here can load the program.
    """
    options = options or CheckOptions()
    for folder in (options.evidence, options.save_run):
        if folder is not None:
            require_writable(Path(folder), force=False)
    quantization = quantization_of(program) if isinstance(against, Checkpoint) else None
    not_asked: tuple[str, ...] = ()
    with ExitStack() as stack:
        candidate = stack.enter_context(OrtSession(program))
        reference = open_reference(program, against, options.reference_dtype, quantization, stack)
        signature = candidate.program.signature
        if isinstance(reference.said_by, SavedRun):
            cases, not_asked = askable(reference.said_by.cases, signature)
        else:
            require_same_beginning(reference.said_by, candidate, cache_dtype(program, reference.dtype))
            longest = signature.static_length if signature.cache is Cache.STATIC else 0
            canonical = canonical_signature(candidate.program)
            cases = parity_cases(reference.said_by, program.config, canonical, signature.cache, longest)
            if options.corpus is not None and isinstance(against, Checkpoint):
                cases += text_cases(
                    against, options, canonical, reference.said_by, longest or program.config.max_columns
                )
            cases = [replace(case, tensors=candidate.layout.rounded_past(case.tensors)) for case in cases]
        report = replace(_compare(reference, program, candidate, cases, options, progress), not_asked=not_asked)
    if not isinstance(against, Checkpoint) or (report.passed and not options.layers):
        return report
    failed = {output.case for output in report.parity.outputs if not output.passed}
    looked_at = [case for case in cases if case.name in failed or not failed]
    layered = LayeredReference(against, options.reference_dtype, quantization)
    evidence = None if options.evidence is None else Path(options.evidence)
    bound = report.parity.outputs[0].tolerance
    return replace(report, layers=examine_layers(layered, program, looked_at, bound, evidence, progress))


def _compare(
    reference: Reference,
    program: OnnxProgram,
    candidate: OrtSession,
    cases: list[Case],
    options: CheckOptions,
    progress: Progress | None,
) -> CheckReport:
    looser = max(program.dtype, reference.dtype, key=TOLERANCES.__getitem__)
    recipe = recipe_of(program) if program.recipe == reference.recipe else None
    tolerance = bound_of(program, recipe, options)
    said_by = reference.said_by
    results = run_both(said_by, program, candidate, cases, reference.name, progress)
    if options.save_run is not None:
        save_sides(Path(options.save_run), reference, program, results, cases)
    real = [OwnLengths.of(case.tensors) for case in cases]
    parity = compare_runs(results, [case.name for case in cases], looser, tolerance, real)
    lost = candidate_not_finite(parity, candidate)
    controls: tuple[Control, ...] = ()
    if options.control:
        question = Question(results=results, cases=cases, program=program, dtype=looser, tolerance=tolerance)
        controls = run_controls(question, candidate, candidate.layout, progress)
    named = [(case.name, case.tensors) for case in cases]
    greedy, company, decode = None, None, token_text(candidate)
    if not isinstance(said_by, SavedRun):
        decode = token_text(said_by)
        greedy = greedy_agreement(said_by, candidate, decode=decode, progress=progress)
    if isinstance(said_by, TorchSession) and lost is None:
        company = measure_company(candidate, outlier_token(said_by), tolerance, progress)
    usual_bound = recipe.usual_for(program.config) if recipe is not None and looser == "float32" else None
    return CheckReport(
        parity=parity,
        greedy_equal=greedy.equal if greedy is not None else 0,
        greedy_total=greedy.total if greedy is not None else 0,
        recipe=program.recipe if recipe is not None else None,
        usual_bound=usual_bound if options.tolerance is None else None,
        not_finite=lost,
        company=company,
        greedy=greedy,
        controls=controls,
        tokens=token_parity(results, named, decode),
        positions=position_errors(results, named),
    )


def check_saved(candidate: SavedRun, reference: SavedRun, options: CheckOptions) -> CheckReport:
    """Compare two runs that were saved of the same cases.

    Args:
        candidate: what was checked.
        reference: what it is held to.
        options: of them the tolerance alone.

    Raises:
        InputError: they are of other sizes, or were asked otherwise.
    """
    require_same_sizes(candidate.config, reference.config, f"{candidate.folder} and {reference.folder}")
    names = [case.name for case in candidate.cases]
    sides: list[tuple[str, list[IterationResult]]] = [(f"{reference.name}, saved", []), (candidate.name, [])]
    for case, found in zip(candidate.cases, candidate.outputs, strict=True):
        expected = reference.run(case.tensors)
        expected[LOGITS] = expected[LOGITS][:, -found[LOGITS].shape[1] :]
        for (name, said), outputs in zip(sides, (expected, found), strict=True):
            kept = without_padding(outputs, case.tensors)
            said.append(IterationResult({key: np.ascontiguousarray(array) for key, array in kept.items()}, 0.0, name))
    same = candidate.recipe == reference.recipe and candidate.recipe is not None
    tolerance = recipes.load(str(candidate.recipe)).tolerance if same and candidate.recipe != recipes.KEEP else 0.0
    looser = max(candidate.dtype, reference.dtype, key=TOLERANCES.__getitem__)
    results, named = RunResults(sides), [(case.name, case.tensors) for case in candidate.cases]
    real = [OwnLengths.of(tensors) for _, tensors in named]
    parity = compare_runs(results, names, looser, tolerance if options.tolerance is None else options.tolerance, real)
    tokens = token_parity(results, named, lambda _: None)
    positions = position_errors(results, named)
    return CheckReport(parity=parity, greedy_equal=0, greedy_total=0, tokens=tokens, positions=positions)


def save_sides(
    out: Path, reference: Reference, program: OnnxProgram, results: RunResults, cases: Sequence[Case]
) -> None:
    """Save what both sides said; the reference as it speaks, not as little of it as this program says.

    Raises:
        InputError: the folder exists.
    """
    whole = SessionRunner(reference.name, reference.said_by, canonical_signature(program))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        said = Comparator.run([whole], data_loader=[case.tensors for case in cases])
    candidate = SideFacts(
        name=results[1][0], dtype=program.dtype, recipe=program.recipe, results=RunResults([results[1]])
    )
    facts = SideFacts(name=reference.name, dtype=reference.dtype, recipe=reference.recipe, results=said)
    save_run(out, cases, facts, candidate, program.config)


def require_same_beginning(reference: Session, candidate: Session, dtype: str) -> None:
    """See that both start from the same prefix: single calls are given their past, and would not show it.

    Raises:
        ComparisonFailedError: they do not.
    """
    found = candidate.first_past(1)
    for name, expected in reference.first_past(1).items():
        most = BEGINNING_TOLERANCES[dtype] * np.abs(expected).max(initial=0)
        off = np.abs(found[name].astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        if not off <= most:
            raise ComparisonFailedError(
                f"{name} of {candidate.folder / INITIAL_CACHE} should be the checkpoint's prefix within {most:.1e}, "
                f"found {off:.1e} apart; export again"
            )


def candidate_not_finite(parity: ParityReport, candidate: Session) -> str | None:
    """Where the candidate first computes no numbers, and the way out; None where it always does."""
    first = next((output for output in parity.outputs if not output.finite), None)
    if first is None:
        return None
    cases = dict.fromkeys(output.case for output in parity.outputs if not output.finite)
    return (
        f"{first.output} of {parity.candidate} is not finite in case {first.case!r} (cases: {', '.join(cases)}), and "
        f"{parity.reference} computes numbers there: {way_out(candidate.describe())}"
    )


def quantization_of(program: OnnxProgram) -> Quantization | None:
    """What a program was quantized with; None where it was not, or where it keeps its source's own integers."""
    recipe = recipe_of(program)
    if recipe is None or recipe.rounding == KEPT:
        return None
    quantization = Quantization.load(
        program.folder, recipe, program.manifest["left_in_float"], program.manifest.get(PROMPT_LAYERS)
    )
    return replace(quantization, rounded=ProgramIntegers(program)) if recipe.rounding != "nearest" else quantization


def bound_of(program: OnnxProgram, recipe: Recipe | None, options: CheckOptions) -> float:
    """What a program is allowed beyond its dtype's tolerance: what was asked for, or else its recipe's."""
    if options.tolerance is not None:
        return options.tolerance
    return recipe.tolerance_for(experts=program.config.experts is not None) if recipe else 0.0


def cache_dtype(program: OnnxProgram, reference_dtype: str) -> str:
    """The coarser of what the two sides keep keys and values in."""
    kept = program.signature.input(past_names(0)[0]).dtype
    return max(kept, reference_dtype, key=BEGINNING_TOLERANCES.__getitem__)
