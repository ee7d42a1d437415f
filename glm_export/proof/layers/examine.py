"""All layers of a program examined: errors by layer, the first guilty one, its node, and what was saved of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glm_export.artifacts.program import OnnxProgram
from glm_export.graphs.slices import UncutError
from glm_export.progress import Progress
from glm_export.proof.cases import Case
from glm_export.proof.layers.evidence import save_evidence
from glm_export.proof.layers.guilty import GuiltyNode, find_node, first_guilty
from glm_export.proof.layers.program import SlicedProgram
from glm_export.proof.layers.reference import LayeredReference
from glm_export.proof.layers.walk import SliceError, Walked, walk

AGREES = {True: "agrees", False: "differs", None: "not in the reference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersReport:
    """What every slice adds by itself, and who is the first to add too much.

    ``tolerance``: of one slice, as of a whole output. ``first``: the first slice beyond it, with its case; None where
    each is within. ``node``: in it; None where the nodes agree one by one, which makes it the runtime's own rewriting.
    ``uncut``: why the graph could not be cut, and nothing else is known then. ``command``: shows the node alone, from
    the folder of evidence.
    """

    tolerance: float
    errors: tuple[SliceError, ...] = ()
    first: SliceError | None = None
    node: GuiltyNode | None = None
    uncut: str | None = None
    command: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tolerance": self.tolerance,
            "errors": [asdict(error) for error in self.errors],
            "first": None if self.first is None else {"slice": self.first.slice, "case": self.first.case},
            "node": None if self.node is None else self.node.to_json(),
            "uncut": self.uncut,
            "command": self.command,
        }

    def sentences(self) -> list[str]:
        """What a person needs first, a line each."""
        if self.uncut is not None:
            return [f"layers were not looked at: {self.uncut}"]
        if self.first is None:
            worst = max(self.errors, key=lambda error: error.worst)
            return [
                f"every layer by itself is within {self.tolerance:.0e}; the worst is {worst.slice}, {worst.worst:.1e}"
            ]
        told = [f"first guilty: {self.first.slice}, {self.first.worst:.1e} by itself in case {self.first.case!r}"]
        if self.node is None:
            return [*told, "its nodes agree one by one: the runtime's own rewriting of the graph makes the difference"]
        shown = [] if self.command is None else [f"shown alone by: {self.command}"]
        return told + _of_node(self.node) + shown


def _of_node(node: GuiltyNode) -> list[str]:
    apart = "" if node.error is None else f", {node.error:.1e} from the reference's {node.expected!r}"
    told = [f"first node: {node.operator} {node.name}{apart}"]
    for value in node.inputs:
        agrees = AGREES[value.agrees]
        agrees = "given" if value.given else agrees
        lost = f", {value.not_finite} not finite" if value.not_finite else ""
        shape = "x".join(map(str, value.shape)) or "scalar"
        told.append(
            f"  reads {value.name} {value.dtype} {shape}, {value.least:.4g} to {value.largest:.4g}{lost}: {agrees}"
        )
    return told + [f"  {hint}" for hint in node.hints]


def examine_layers(
    reference: LayeredReference,
    program: OnnxProgram,
    cases: Sequence[Case],
    tolerance: float,
    evidence: Path | None = None,
    progress: Progress | None = None,
) -> LayersReport:
    """Walk through all layers, and where one is guilty look for its node.

    Args:
        reference: one layer at a time, rounding as the program does.
        program: an exported folder.
        cases: calls in the canonical layout; those that failed suffice.
        tolerance: of one slice's outputs, as a share of the largest value.
        evidence: a new folder for the node, where one is found.
        progress: shows how far it is.
    """
    try:
        sliced = SlicedProgram(program)
    except UncutError as error:
        return LayersReport(tolerance=tolerance, uncut=str(error))
    with sliced:
        walked = walk(reference, sliced, cases, progress)
        return judge_layers(reference, sliced, cases, walked, tolerance, evidence)


def judge_layers(
    reference: LayeredReference,
    sliced: SlicedProgram,
    cases: Sequence[Case],
    walked: Walked,
    tolerance: float,
    evidence: Path | None = None,
) -> LayersReport:
    """What a walk shows: the first guilty layer, and its node, which is looked for.

    Args:
        reference: one layer at a time.
        sliced: the program.
        cases: that were walked.
        walked: the errors.
        tolerance: of one slice's outputs, as a share of the largest value.
        evidence: a new folder for the node, where one is found.
    """
    first = first_guilty(walked.errors, tolerance)
    node = None if first is None else find_node(reference, sliced, cases, walked, first, tolerance)
    command = save_evidence(sliced.model, node, tolerance, evidence) if node and evidence else None
    saved = None if command is None else f"cd {shlex.quote(str(evidence))} && {command}"
    return LayersReport(tolerance=tolerance, errors=walked.errors, first=first, node=node, command=saved)
