"""The embedded model's cases and reference, made once, and a verdict on changed programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.proof.cases import Case, parity_cases
from glm_export.proof.compare import ParityReport, compare_runs
from glm_export.proof.layers.examine import LayersReport, examine_layers
from glm_export.proof.layers.reference import LayeredReference
from glm_export.proof.runners import canonical_signature, run_both
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.torch import TorchSession
from glm_export.spec.signature import Cache

BOUND = 1e-5


@dataclass
class Verdict:
    """What single calls say, and what the layers say."""

    parity: ParityReport
    layers: LayersReport


class Judge:
    """The part of ``check`` that looks at single calls, without the texts, whose tokens take longer than all else."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.reference, self.layered = TorchSession(checkpoint), LayeredReference(checkpoint)

    def cases(self, candidate: OrtSession) -> list[Case]:
        signature = candidate.program.signature
        longest = signature.static_length if signature.cache is Cache.STATIC else 0
        canonical = canonical_signature(candidate.program)
        return parity_cases(self.reference, candidate.config, canonical, signature.cache, longest)

    def __call__(self, program: OnnxProgram) -> Verdict:
        with OrtSession(program) as candidate:
            return self.of(candidate)

    def of(self, candidate: OrtSession) -> Verdict:
        """Of a program that is loaded."""
        cases = self.cases(candidate)
        results = run_both(self.reference, candidate.program, candidate, cases)
        parity = compare_runs(results, [case.name for case in cases], "float32")
        return Verdict(parity, examine_layers(self.layered, candidate.program, cases, BOUND))


@pytest.fixture(scope="session")
def judged(demo_checkpoint: Checkpoint) -> Iterator[Judge]:
    judge = Judge(demo_checkpoint)
    yield judge
    judge.reference.close()
