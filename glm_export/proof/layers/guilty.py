"""From errors by layer to the first guilty layer and node, with what it read and what it should have put out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from glm_export.graphs.slices import Meaning, Slice
from glm_export.inputs.call_layout import OwnLengths
from glm_export.proof.cases import Case
from glm_export.proof.layers.hints import hints
from glm_export.proof.layers.intermediates import Intermediates, Places, recording
from glm_export.proof.layers.nodes import (
    NO_VALUE,
    Blamed,
    Explained,
    blame,
    compare_values,
    named_outputs,
    structure_keys,
)
from glm_export.proof.layers.program import SlicedProgram
from glm_export.proof.layers.reference import HEAD_MODULES, LayeredReference
from glm_export.proof.layers.walk import HEAD, SMALLEST_SCALE, CaseState, SliceError, Walked, reference_step
from glm_export.spec.signature import INPUT_IDS, LOGITS
from glm_export.spec.weight_formats import PROMPT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFacts:
    """What a node read.

    ``agrees``: with the reference, or not; None where the reference has no such number. ``given``: by the caller.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float
    largest: float
    not_finite: int
    agrees: bool | None
    is_weight: bool = False
    given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuiltyNode:
    """The first node that computes something else than the reference, on inputs that agree.

    ``error``: of its output, as a share of the expected one's largest value; None where that is not known.
    ``expected``: what the reference calls the value. ``region``: nodes up to where values must agree again.
    ``found_array``, ``expected_array``: the output, and what it should be; ``inputs_arrays``: what it read.
    """

    slice: str
    case: str
    name: str
    operator: str
    output: str
    error: float | None
    expected: str | None
    region: tuple[str, ...]
    inputs: tuple[ValueFacts, ...]
    hints: tuple[str, ...]
    index: int
    found_array: NDArray[Any] = field(repr=False, compare=False)
    expected_array: NDArray[Any] | None = field(repr=False, compare=False)
    inputs_arrays: dict[str, NDArray[Any]] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the arrays."""
        left_out = {"found_array", "expected_array", "inputs_arrays", "index", "inputs"}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return plain | {"inputs": [asdict(value) for value in self.inputs]}


def first_guilty(errors: Sequence[SliceError], tolerance: float) -> SliceError | None:
    """The first slice, in the first case it shows in, that is too far off by itself; None where each is within."""
    slices = list(dict.fromkeys(error.slice for error in errors))
    beyond = [error for error in errors if not error.worst <= tolerance]
    return min(beyond, key=lambda error: slices.index(error.slice), default=None)


def find_node(
    reference: LayeredReference,
    program: SlicedProgram,
    cases: Sequence[Case],
    walked: Walked,
    guilty: SliceError,
    tolerance: float,
) -> GuiltyNode | None:
    """Look for the node within a slice; two slices' values are held in memory, of one case.

    Args:
        reference: one layer at a time.
        program: walked before.
        cases: that were walked.
        walked: the errors.
        guilty: from :func:`first_guilty`.
        tolerance: beyond which a value differs.

    Returns:
        None where every value of the slice agrees when its nodes run unfused: then it is the runtime's own rewriting.
    """
    case = next(case for case in cases if case.name == guilty.case)
    part = next(part for part in program.slices if part.name == guilty.slice)
    within = [error.slice for error in walked.errors if error.case == guilty.case and error.worst <= tolerance]
    alike = _most_alike(program, part, [other for other in program.slices if other.name in within])
    explained = _explain(reference, program, case, [part, *([alike] if alike else [])], tolerance)
    found = explained[part.name]
    targets = _targets(part, guilty, tolerance)
    # What it puts out has a meaning of its own: values in place of keys are wrong, though the reference has them.
    found = replace(found, agrees=dict(found.agrees) | dict.fromkeys(targets))
    blamed = blame(program.model.graph, found, targets, explained[alike.name] if alike else None)
    return _described(program, part, guilty.case, found, blamed) if blamed is not None else None


def _most_alike(program: SlicedProgram, part: Slice, others: Sequence[Slice]) -> Slice | None:
    """The layer that is built most like this one; None where no other begins alike."""
    meanings = [crossing.meaning for crossing in part.inputs]
    layers = [
        other
        for other in others
        if other is not part
        and None not in (other.layer, part.layer)
        and [crossing.meaning for crossing in other.inputs] == meanings
    ]
    keys = set(structure_keys(program.model.graph, part).values())

    def shared(other: Slice) -> int:
        return len(keys.intersection(structure_keys(program.model.graph, other).values()))

    return max(layers, key=shared, default=None)


def _targets(part: Slice, guilty: SliceError, tolerance: float) -> list[str]:
    """The slice's outputs that are too far off."""
    names = {crossing.meaning.value: crossing.value for crossing in part.outputs}
    names |= dict(zip(("key", "value") if part.layer is not None else (LOGITS,), part.presents, strict=False))
    return [names[name] for name, error in guilty.alone.items() if not error <= tolerance]


def _explain(
    reference: LayeredReference, program: SlicedProgram, case: Case, parts: Sequence[Slice], tolerance: float
) -> dict[str, Explained]:
    """Values of some slices beside the reference's, from one more walk of it through the case."""
    state, found = CaseState(case, *reference.enter(case.tensors)), {}
    last = max(program.slices.index(part) for part in parts)
    for part in program.slices[: last + 1]:
        if part not in parts:
            reference_step(reference, part, [state])
            continue
        given = state.given(part, program)
        rows = OwnLengths.of(case.tensors)
        places = Places(
            new_BS=rows.new,
            all_BT=rows.all,
            own_lengths=program.program.signature.own_lengths,
            head_dim=reference.config.head_dim,
        )
        known = Intermediates(tolerance, places, state.call.mask_B1ST.numpy())
        names = named_outputs(program.model.graph, part)
        values = program.load(part, names).run(given, names)
        values |= {name: given[name] for name in given if name not in values}
        _record(reference, part, state, known)
        found[part.name] = compare_values(program.model.graph, part, values, known)
    return found


def _record(reference: LayeredReference, part: Slice, state: CaseState, known: Intermediates) -> None:
    """One step of the reference with everything it computes."""
    call, hidden_BSH = state.call, state.hidden_BSH
    if part.layer is not None:
        tokens = PROMPT_TOKENS + 1 if state.case.tensors[INPUT_IDS].size > PROMPT_TOKENS else 1
        rotary = call.rotary
        with reference.layer(part.layer, tokens) as layer, recording(layer, known.add):
            known.read_weights(layer, tables=None if rotary is None else {"cos": rotary.cos, "sin": rotary.sin})
            layer(hidden_BSH, call.rotary, call.mask_B1ST, call.past(part.layer))
    reference_step(reference, part, [state])
    if part.name == HEAD:
        _record_head(reference, state, hidden_BSH, known)
        return
    known.add("hidden", state.hidden_BSH)
    norm_behind = reference.norm_behind(-1 if part.layer is None else part.layer)
    if any(crossing.meaning is Meaning.NORMED for crossing in part.outputs) and state.normed_BSH is not None:
        known.add(norm_behind, state.normed_BSH)
        with reference.module(norm_behind) as norm:
            known.read_weights(norm, f"{norm_behind}.")


def _record_head(reference: LayeredReference, state: CaseState, hidden_BSH: Tensor, known: Intermediates) -> None:
    (normed_BSH,) = reference.normed(reference.config.num_layers - 1, [hidden_BSH])
    logits_BSV = torch.from_numpy(state.expected[LOGITS])
    for name, value in (("hidden", hidden_BSH), ("final_norm", normed_BSH), ("head", logits_BSV)):
        known.add(name, value)
        known.add(name, value[:, -1:])
    for name in HEAD_MODULES:
        with reference.module(name) as module:
            known.read_weights(module, f"{name}.")


def _described(
    program: SlicedProgram,
    part: Slice,
    case: str,
    found: Explained,
    blamed: Blamed,
) -> GuiltyNode:
    graph = program.model.graph
    node, value = graph.node[blamed.node], found.values[blamed.output]
    expected_name, expected = _expected(found, blamed, value, node.input)
    arrays = {name: _array(program, found, name) for name in node.input if name}
    facts = [_facts(name, array, found, graph) for name, array in arrays.items()]
    told = hints(value, expected)
    told += [
        f"its input {fact.name} has no counterpart among the reference's weights"
        for fact in facts
        if fact.is_weight and fact.agrees is False
    ]
    error = None
    if expected is not None and value.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(value.astype(np.float64) - expected.astype(np.float64))[~np.isnan(expected)]
        scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), SMALLEST_SCALE)
        error = float(np.nan_to_num(apart.max(initial=0.0), nan=np.inf, posinf=np.inf)) / scale
    return GuiltyNode(
        slice=part.name,
        case=case,
        name=node.name or node.output[0],
        operator=node.op_type,
        output=blamed.output,
        error=error,
        expected=expected_name,
        region=tuple(graph.node[index].name or graph.node[index].output[0] for index in blamed.region),
        inputs=tuple(facts),
        hints=tuple(told),
        index=blamed.node,
        found_array=value,
        expected_array=expected,
        inputs_arrays=arrays,
    )


def _expected(
    found: Explained, blamed: Blamed, value: NDArray[Any], inputs: Sequence[str]
) -> tuple[str | None, NDArray[Any] | None]:
    """What stands there in a layer that is right; else the next thing of that size which the program nowhere has."""
    known = found.intermediates
    index = blamed.expected
    if index is None:
        met = {place for place in found.agrees.values() if place is not None}
        read = max((place for name in inputs if (place := found.agrees.get(name)) is not None), default=NO_VALUE)
        index = known.next_like(value, met, read)
    if index is None or value.dtype.kind != "f":
        return None, None
    array = known.ordered_like(index, value)
    return (known.values[index][0], array) if array is not None else (None, None)


def _array(program: SlicedProgram, found: Explained, name: str) -> NDArray[Any]:
    if name in found.values:
        return found.values[name]
    for tensor in program.model.graph.initializer:
        if tensor.name == name:
            return onnx.numpy_helper.to_array(tensor, base_dir=str(program.program.folder))
    raise KeyError(name)


def _facts(name: str, array: NDArray[Any], found: Explained, graph: onnx.GraphProto) -> ValueFacts:
    is_weight = any(tensor.name == name for tensor in graph.initializer)
    agrees: bool | None = None
    if name in found.agrees:
        agrees = found.agrees[name] is not None
    elif is_weight and array.dtype.kind == "f" and array.size > 1:
        agrees = found.intermediates.weight(array) is not None or found.intermediates.explain(array) is not None
    numbers = array.astype(np.float64) if array.size and array.dtype.kind in "fiub" else np.zeros(1)
    finite = numbers[np.isfinite(numbers)]
    return ValueFacts(
        name=name,
        dtype=str(array.dtype),
        shape=tuple(array.shape),
        least=float(finite.min(initial=np.inf)) if finite.size else float("nan"),
        largest=float(finite.max(initial=-np.inf)) if finite.size else float("nan"),
        not_finite=int(numbers.size - finite.size),
        agrees=agrees,
        is_weight=is_weight,
        given=any(value.name == name for value in graph.input),
    )
