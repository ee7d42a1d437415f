"""Sessions as Polygraphy runners, fed in the canonical program's layout."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from glm_export.artifacts.program import OnnxProgram
from glm_export.inputs.call_layout import without_padding
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.proof.cases import Case
from glm_export.proof.sides.foreign import FOREIGN
from glm_export.sessions.onnxruntime.runtime import stopping_in_one_line
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Tensors
from glm_export.spec.signature import INPUT_IDS, LOGITS, Signature, decoder_signature

logger = logging.getLogger(__name__)


class Runs(Protocol):
    """Single calls in the canonical program's layout, cache handed in and out."""

    def run(self, tensors: Tensors) -> Tensors:
        """One call by the names of the canonical signature."""


class SessionRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """A session as a Polygraphy runner, fed in the canonical program's layout."""

    def __init__(self, name: str, session: Runs, signature: Signature) -> None:
        super().__init__(name=name, prefix=name)
        self._session = session
        self._signature = signature

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the canonical signature."""
        metadata = TensorMetadata()
        for spec in self._signature.inputs:
            metadata.add(spec.name, np.dtype(spec.dtype), [None if isinstance(dim, str) else dim for dim in spec.dims])
        return metadata

    def infer_impl(self, feed_dict: Tensors) -> OrderedDict[str, np.ndarray]:
        """One call of the session."""
        outputs = self._outputs(dict(feed_dict))
        self.inference_time = 0.0
        # Polygraphy views them as bytes.
        return OrderedDict((name, np.ascontiguousarray(array)) for name, array in outputs.items())

    def _outputs(self, tensors: Tensors) -> Tensors:
        return self._session.run(tensors)


class ReferenceRunner(SessionRunner):
    """The reference, saying as much as the program does: its logits, and padding only where it has any."""

    def __init__(self, session: Runs, program: OnnxProgram, signature: Signature, name: str = "pytorch") -> None:
        super().__init__(name, session, signature)
        self._program = program

    def _outputs(self, tensors: Tensors) -> Tensors:
        return as_the_program_says(self._session.run(tensors), tensors, self._program)


class ForeignRunner(SessionRunner):
    """Another tool's program: what it has for padding is its own affair."""

    def _outputs(self, tensors: Tensors) -> Tensors:
        return without_padding(super()._outputs(tensors), tensors)


def as_the_program_says(outputs: Tensors, tensors: Tensors, program: OnnxProgram) -> Tensors:
    """A call's whole outputs, as little of them as a program says: its logits, and 0 for padding where it has none."""
    told = program.signature.told_logits(outputs[LOGITS].shape[1])
    outputs = outputs | {LOGITS: outputs[LOGITS][:, -told:]}
    return without_padding(outputs, tensors) if says_no_padding(program) else outputs


def says_no_padding(program: OnnxProgram) -> bool:
    """Whether a program's outputs are compared with 0 in place of padding."""
    return program.signature.own_lengths or program.dialect == FOREIGN


def run_both(
    reference: Runs,
    program: OnnxProgram,
    candidate: OrtSession,
    cases: Sequence[Case],
    name: str = "pytorch",
    progress: Progress | None = None,
) -> RunResults:
    """Record both runs; Polygraphy calls each runner once a case.

    Args:
        reference: answers in the canonical layout.
        program: the other side's.
        candidate: that program, loaded.
        cases: what both are asked.
        name: of the reference.
        progress: shows calls.

    Raises:
        ComparisonFailedError: the program stops inside; the message names the node.
    """
    signature = canonical_signature(candidate.program)
    own = (ForeignRunner if program.dialect == FOREIGN else SessionRunner)("onnxruntime", candidate, signature)
    # Where the program's layout is the canonical one, Polygraphy runs it without our session between.
    runners = [
        ReferenceRunner(reference, program, signature, name),
        OnnxrtRunner(lambda: candidate.runtime, name="onnxruntime") if _is_canonical(candidate, signature) else own,
    ]
    with stopping_in_one_line():
        return run_cases(runners, cases, progress)


def run_cases(runners: Sequence[BaseRunner], cases: Sequence[Case], progress: Progress | None = None) -> RunResults:
    """Every runner's answers to every case, recorded by Polygraphy.

    Args:
        runners: asked one after another.
        cases: what they are asked.
        progress: shows calls, of all runners together.
    """
    logger.info("%d cases, each asked of %s", len(cases), ", ".join(runner.name for runner in runners))
    for case in cases:
        logger.debug("case %s: %s", case.name, " x ".join(map(str, case.tensors[INPUT_IDS].shape)))
    advance = (progress or NullProgress()).task("cases", len(runners) * len(cases))
    told = [_told(runner, advance) for runner in runners]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return Comparator.run(told, data_loader=[case.tensors for case in cases])


def _told(runner: BaseRunner, advance: Advance) -> BaseRunner:
    """A runner that tells each of its calls: Polygraphy does not."""
    infer = runner.infer

    def counted(*given: Any, **named: Any) -> Any:
        outputs = infer(*given, **named)
        advance(1)
        return outputs

    runner.infer = counted
    return runner


def _is_canonical(candidate: OrtSession, signature: Signature) -> bool:
    """Whether the program is called by the canonical names and no others."""
    taken = {spec.name for spec in candidate.program.signature.inputs}
    ours = candidate.program.dialect != FOREIGN
    return ours and candidate.layout.is_canonical and taken == {spec.name for spec in signature.inputs}


def canonical_signature(program: OnnxProgram) -> Signature:
    """The inputs and outputs the program would have in the canonical dialect."""
    return decoder_signature(program.config, dtype=program.dtype, logits=program.logits)
