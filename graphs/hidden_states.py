"""Hidden states as outputs of a program: what each layer reads, and what the head does.

They are named in the canonical program, before anything is lowered: a dialect's rules carry its outputs along.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.invariants import InvariantError
from glm_export.spec.signature import LAST_HIDDEN_STATE, LOGITS, Signature, hidden_state_name

FIRST_NORM = "layers.{}.attention_norm/"


def put_out_hidden_states(model: ir.Model, signature: Signature) -> None:
    """Put out those that a signature names, behind the program's outputs, in place.

    Args:
        model: canonical. Behind its last layer come the final norm, the last token's slice where only its logits are
            wanted, and the head; a layer begins with its first norm.
        signature: the target's.

    Raises:
        InvariantError: the program has no such value, or two of them are one.
    """
    wanted = signature.hidden_states
    if not wanted:
        return
    layer_of = {hidden_state_name(layer): layer for layer in range(len(wanted) - 1)}
    for name in wanted:
        value = _heads_input(model) if name == LAST_HIDDEN_STATE else _layers_input(model, layer_of[name])
        if value.is_graph_output():
            raise InvariantError(f"{name} should be a value of its own, and is {value.name} as well")
        value.name = name
        model.graph.outputs.append(value)


def _heads_input(model: ir.Model) -> ir.Value:
    """Of every token, whichever of them the head reads."""
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    value = _first_input(logits.producer(), "MatMul", LOGITS)
    sliced = value.producer()
    return _first_input(sliced, "Slice", LOGITS) if sliced is not None and sliced.op_type == "Slice" else value


def _layers_input(model: ir.Model, layer: int) -> ir.Value:
    begins = FIRST_NORM.format(layer)
    node = next((node for node in model.graph if (node.name or "").startswith(begins)), None)
    return _first_input(node, None, f"layer {layer}")


def _first_input(node: ir.Node | None, operator: str | None, where: str) -> ir.Value:
    if node is None or (operator is not None and node.op_type != operator) or node.inputs[0] is None:
        raise InvariantError(f"{where} should be made by {operator or 'a norm'} from hidden states, and is not")
    return node.inputs[0]
