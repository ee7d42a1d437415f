"""Prove an ONNX program equal to the PyTorch reference: Polygraphy runs both, ``compare`` judges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glm_export.artifacts.initial_cache import INITIAL_CACHE
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.keep import KEPT
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import ComparisonFailedError
from glm_export.generation.finite import way_out
from glm_export.inputs.call_layout import OwnLengths
from glm_export.progress import Progress
from glm_export.proof.cases import parity_cases
from glm_export.proof.company import CompanyReport, measure_company, outlier_token
from glm_export.proof.compare import BEGINNING_TOLERANCES, TOLERANCES, ParityReport, compare_runs
from glm_export.proof.layers.examine import LayersReport, examine_layers
from glm_export.proof.layers.reference import LayeredReference
from glm_export.proof.measures.greedy import GreedyReport, greedy_agreement, token_text
from glm_export.proof.measures.positions import PositionErrors, position_errors
from glm_export.proof.measures.tokens import TokenParity, token_parity
from glm_export.proof.options import CheckOptions
from glm_export.proof.origin import require_same_checkpoint
from glm_export.proof.runners import canonical_signature, run_both
from glm_export.proof.stored_integers import ProgramIntegers
from glm_export.sessions.batch_invariance import recipe_of
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from glm_export.spec.signature import Cache, past_names

SCHEMA = "glm-export/check/1"
"""Of :meth:`CheckReport.to_json`: raised where a name goes or changes its meaning, not where one comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
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
        exact = self.parity.dtype == "float32" and self.recipe is None
        return within and (not exact or self.greedy_equal == self.greedy_total)

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
            "layers": None if self.layers is None else self.layers.to_json(),
        }  # fmt: skip


def check(
    program: OnnxProgram,
    checkpoint: Checkpoint,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Run the PyTorch reference and the ONNX program side by side.

    The reference of a quantized program computes with the weights its recipe keeps, in floating point: so what
    differs is the rounding of activations, and any defect. How much the recipe itself costs is another question.

    Args:
        program: an exported folder.
        checkpoint: what it was exported from.
        options: with float16 or bfloat16 as the reference's dtype the bound is that dtype's. Where the program fails,
            its layers are looked at as well.
        progress: shows how far that is.

    Raises:
        InputError: the program was exported from another checkpoint; or there is a folder for evidence already.
        CheckpointError: the checkpoint's tensors do not fit.
        EnvironmentMissingError: no runtime here can load the program.
    """
    options = options or CheckOptions()
    reference_dtype = options.reference_dtype
    evidence = None if options.evidence is None else require_writable(Path(options.evidence), force=False)
    require_same_checkpoint(program, checkpoint)
    looser = max(program.dtype, reference_dtype, key=TOLERANCES.__getitem__)
    quantization = quantization_of(program)
    recipe = quantization.recipe if quantization else None
    with (
        TorchSession(checkpoint, reference_dtype, quantization=quantization) as reference,
        OrtSession(program) as candidate,
    ):
        signature = candidate.program.signature
        require_same_beginning(reference, candidate, cache_dtype(program, reference_dtype))
        max_tokens = signature.static_length if signature.cache is Cache.STATIC else 0
        canonical = canonical_signature(candidate.program)
        cases = parity_cases(reference, program.config, canonical, signature.cache, max_tokens)
        cases = [replace(case, tensors=candidate.layout.rounded_past(case.tensors)) for case in cases]
        tolerance = recipe.tolerance_for(experts=program.config.experts is not None) if recipe else 0.0
        results = run_both(reference, program, candidate, cases)
        real = [OwnLengths.of(case.tensors) for case in cases]
        parity = compare_runs(results, [case.name for case in cases], looser, tolerance, real)
        decode, named = token_text(reference), [(case.name, case.tensors) for case in cases]
        greedy = greedy_agreement(reference, candidate, decode=decode)
        lost = candidate_not_finite(parity, candidate)
        company = measure_company(candidate, outlier_token(reference), tolerance) if lost is None else None
    usual_bound = recipe.usual_for(program.config) if recipe is not None and looser == "float32" else None
    report = CheckReport(
        parity=parity, greedy_equal=greedy.equal, greedy_total=greedy.total, recipe=program.recipe,
        usual_bound=usual_bound, not_finite=lost, company=company, greedy=greedy,
        tokens=token_parity(results, named, decode), positions=position_errors(results, named),
    )  # fmt: skip
    if report.passed and not options.layers:
        return report
    failed = {output.case for output in parity.outputs if not output.passed}
    looked_at = [case for case in cases if case.name in failed or not failed]
    layered = LayeredReference(checkpoint, reference_dtype, quantization)
    bound = parity.outputs[0].tolerance
    return replace(report, layers=examine_layers(layered, program, looked_at, bound, evidence, progress))


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
    quantization = Quantization.load(program.folder, recipe, program.manifest["left_in_float"])
    return replace(quantization, rounded=ProgramIntegers(program)) if recipe.rounding != "nearest" else quantization


def cache_dtype(program: OnnxProgram, reference_dtype: str) -> str:
    """The coarser of what the two sides keep keys and values in."""
    kept = program.signature.input(past_names(0)[0]).dtype
    return max(kept, reference_dtype, key=BEGINNING_TOLERANCES.__getitem__)
