"""From the traced graph to the canonical program: weights transposed at rest, readable names, our signature."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.optimizer import fold_constants

from glm_export.graphs.invariants import InvariantError
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import LAST_HIDDEN_STATE, LOGITS, Signature, hidden_state_name

# Constants up to this size are folded and kept in the graph; weights are far larger and never read here.
FOLD_LIMIT_BYTES = 1024
# The end of a slice that has none.
WHOLE = 2**63 - 1
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
# What the decoder itself computes, outside of every module, is the attention mask.
MASK_SCOPE = "mask"
# A layer begins with this one.
FIRST_NORM = "layers.{}.attention_norm/"


def canonicalize(model: ir.Model, signature: Signature, *, wrapper: str, transposed: frozenset[str]) -> None:
    """Turn the exporter's graph into the canonical program, in place, without touching weight values.

    Args:
        model: as ``torch.onnx.export(..., optimize=False)`` made it.
        signature: names, dtypes and dims of inputs and outputs, in graph order.
        wrapper: the attribute prefix the traced module put before every parameter name.
        transposed: weights that the file stores as ``[in, out]``, by parameter name.

    Raises:
        InvariantError: a weight is read otherwise than the file stores it.
    """
    _name_weights(model, wrapper)
    _store_transposed(model, transposed)
    fold_constants(
        model, onnx_shape_inference=False, input_size_limit=FOLD_LIMIT_BYTES, output_size_limit=FOLD_LIMIT_BYTES
    )
    ir.passes.Sequential(
        common_passes.IdentityEliminationPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.RemoveUnusedNodesPass(),
    )(model)
    _drop_whole_slices(model)
    _drop_unread_initializers(model)
    _rename_nodes(model, wrapper)
    _set_border(model, signature)
    _strip_metadata(model)


def _name_weights(model: ir.Model, wrapper: str) -> None:
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(wrapper):
            value.name = name.removeprefix(wrapper)
            value.const_value = None  # traced without values: nothing may try to fold them


def _store_transposed(model: ir.Model, transposed: frozenset[str]) -> None:
    """``MatMul(x, Transpose(W[…, out, in]))`` becomes ``MatMul(x, W[…, in, out])``: the writer transposes."""
    for name in transposed:
        weight = model.graph.initializers[name]
        for node, _ in list(weight.uses()):
            rank = len(weight.shape or ())
            exchanged = [*range(rank - 2), rank - 1, rank - 2]
            if node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != exchanged:
                raise InvariantError(f"{name} is stored transposed, but {node.op_type} reads it as traced")
            node.outputs[0].replace_all_uses_with(weight)
            model.graph.remove(node, safe=True)
        *stack, rows, columns = weight.shape  # type: ignore[misc]
        weight.shape = ir.Shape((*stack, columns, rows))


def _drop_whole_slices(model: ir.Model) -> None:
    """``x[:]`` traces to a slice of everything, which would copy it."""
    for node in list(model.graph):
        if node.op_type != "Slice" or node.outputs[0].is_graph_output():
            continue
        bounds = [value.const_value.numpy() for value in node.inputs[1:] if value is not None and value.const_value]
        if len(bounds) != 4:  # starts, ends, axes, steps
            continue
        starts, ends, _, steps = bounds
        if not starts.any() and (ends == WHOLE).all() and (steps == 1).all():
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _drop_unread_initializers(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def _rename_nodes(model: ir.Model, wrapper: str) -> None:
    """``layers.0.attention/RotaryEmbedding_1``: the module that made the node, its operator, a count if repeated."""
    seen: Counter[str] = Counter()
    module_of: dict[ir.Node, str] = {}
    for node in model.graph:
        module_of[node] = _module(node, module_of, wrapper)
        name = f"{module_of[node]}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name] - 1}"
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}.{index}" if len(node.outputs) > 1 else node.name


def _module(node: ir.Node, module_of: dict[ir.Node, str], wrapper: str) -> str:
    """The module a node came from; a folded node has no scopes and belongs where its input does."""
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    if not scopes:
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        return module_of.get(producer, MASK_SCOPE) if producer else MASK_SCOPE
    # The last scope names the traced operation, the one before it the module that called it.
    module: str = scopes[-2] if len(scopes) > 1 else ""
    return module.removeprefix(wrapper) if module.startswith(wrapper) else MASK_SCOPE


def _set_border(model: ir.Model, signature: Signature) -> None:
    """Give inputs and outputs our names and dims; carry the dims' new symbols through the graph."""
    symbols: dict[str, str] = {}
    for values, specs in ((model.graph.inputs, signature.inputs), (model.graph.outputs, signature.outputs)):
        if len(values) != len(specs):
            raise InvariantError(f"the traced graph has {len(values)} values where the signature has {len(specs)}")
        for value, spec in zip(values, specs, strict=True):
            for dim, name in zip(value.shape or (), spec.dims, strict=True):
                if not isinstance(dim, int) and isinstance(name, str):
                    symbols[str(dim.value)] = name
            value.name = spec.name
            value.shape = ir.Shape(spec.dims)
            value.type = ir.TensorType(ir.DataType[ONNX_DTYPES[spec.dtype]])
    for node in model.graph:
        for output in node.outputs:
            if output.shape is not None and not output.is_graph_output():
                output.shape = ir.Shape(
                    [dim if isinstance(dim, int) else symbols.get(str(dim.value)) for dim in output.shape]
                )


def _strip_metadata(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold stack traces, and with them paths of the machine that exported."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.functions.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.producer_name, model.producer_version = "glm-export", None
    model.graph.name = "glm"


def put_out_hidden_states(model: ir.Model, signature: Signature) -> None:
    """Put out hidden states that a signature names, behind the program's outputs, in place.

    Named here, before anything is lowered, they are carried along by a dialect's rules.

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
