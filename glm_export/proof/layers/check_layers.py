"""A check for models that do not fit memory: both sides go through the layers beside each other, one at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from polygraphy.comparator import IterationResult, RunResults

from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.graphs.slices import UncutError
from glm_export.inputs.call_layout import OwnLengths
from glm_export.progress import Progress
from glm_export.proof.cases import parity_cases
from glm_export.proof.check import CheckReport, bound_of, quantization_of
from glm_export.proof.compare import TOLERANCES, compare_runs
from glm_export.proof.layers.examine import judge_layers
from glm_export.proof.layers.program import SlicedProgram
from glm_export.proof.layers.reference import LayeredReference
from glm_export.proof.layers.walk import walk
from glm_export.proof.measures.positions import position_errors
from glm_export.proof.measures.tokens import token_parity
from glm_export.proof.options import CheckOptions
from glm_export.proof.origin import require_same_checkpoint
from glm_export.proof.runners import as_the_program_says, canonical_signature
from glm_export.proof.sides.foreign import FOREIGN
from glm_export.sessions.session import Tensors
from glm_export.spec.signature import Cache


def check_layer_by_layer(
    program: OnnxProgram, checkpoint: Checkpoint, options: CheckOptions, progress: Progress | None = None
) -> CheckReport:
    """Hold a program to its checkpoint in the memory of one layer of each.

    The same cases and bounds as :func:`glm_export.proof.check.check`; what a program puts out is what comes of its
    slices, each on what the one before it made. Texts are not written, and company is not asked: both would go through
    all layers for every token.

    Args:
        program: an exported folder, or another's file.
        checkpoint: what it was made of.
        options: how.
        progress: shows how far it is.

    Raises:
        InputError: the program was made of another checkpoint, or its graph cannot be cut into layers.
    """
    if program.dialect != FOREIGN:
        require_same_checkpoint(program, checkpoint)
    evidence = None if options.evidence is None else require_writable(Path(options.evidence), force=False)
    quantization = quantization_of(program)
    recipe = quantization.recipe if quantization else None
    looser = max(program.dtype, options.reference_dtype, key=TOLERANCES.__getitem__)
    tolerance = bound_of(program, recipe, options)
    reference = LayeredReference(checkpoint, options.reference_dtype, quantization)
    try:
        sliced = SlicedProgram(program)
    except UncutError as error:
        told = f"{program.folder} cannot be checked layer by layer: {error}; leave --layer-by-layer out"
        raise InputError(told) from error
    with sliced:
        signature = sliced.program.signature
        longest = signature.static_length if signature.cache is Cache.STATIC else 0
        canonical = canonical_signature(sliced.program)
        cases = parity_cases(reference, program.config, canonical, signature.cache, longest)
        cases = [replace(case, tensors=sliced.layout.rounded_past(case.tensors)) for case in cases]
        walked = walk(reference, sliced, cases, progress)
        expected, found = (
            [as_the_program_says(said, case.tensors, sliced.program) for said, case in zip(side, cases, strict=True)]
            for side in (walked.expected, walked.found)
        )
        results = RunResults([("pytorch", _iterations(expected)), ("onnxruntime", _iterations(found))])
        named = [(case.name, case.tensors) for case in cases]
        real = [OwnLengths.of(tensors) for _, tensors in named]
        parity = compare_runs(results, [name for name, _ in named], looser, tolerance, real)
        bound = parity.outputs[0].tolerance
        layers = judge_layers(reference, sliced, cases, walked, bound, evidence)
    return CheckReport(
        parity=parity,
        greedy_equal=0,
        greedy_total=0,
        recipe=program.recipe,
        usual_bound=recipe.usual_for(program.config) if recipe is not None and looser == "float32" else None,
        tokens=token_parity(results, named, lambda _: None),
        positions=position_errors(results, named),
        layers=layers,
    )


def _iterations(outputs: list[Tensors]) -> list[IterationResult]:
    return [
        IterationResult(OrderedDict((name, np.ascontiguousarray(array)) for name, array in said.items()), 0.0, "")
        for said in outputs
    ]
