"""The chosen experts in one operator: the same numbers as all of them weighted, whatever was chosen.

Shapes: X tokens, E experts, H hidden size, F width of an expert.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from glm_export.calibration.formats import decode
from glm_export.exporter.weight_blocks import alternating
from glm_export.graphs.rules.ort.experts import ChosenExperts, QuantizedExperts
from glm_export.spec.weight_formats import ExpertWeights, WeightFormats
from tests.helpers.small_programs import (
    Rewritten,
    assert_equal,
    assert_left_alone,
    program,
    random_arrays,
    rewritten,
    run,
    stored_tensors,
)

EXPERTS, HIDDEN, WIDTH, TOKENS = 5, 32, 64, 7
# Nodes before and after the mixture: microsoft/onnxruntime#33866 was about values that were wrong between others.
TEXT = """
mixture (float[X, 32] h, float[X, 5] scores, float[5] bias) => (float[X, 32] y)
{
    x = Mul(h, scale)
    choice = Add(scores, bias)
    best, chosen = TopK<axis=-1>(choice, k)
    plain = GatherElements<axis=1>(scores, chosen)
    weights = Mul(plain, scale)
    zeros = Sub(scores, scores)
    scattered = ScatterElements<axis=1>(zeros, chosen, weights)
    both = MatMul(x, gate_up)
    gate, up = Split<axis=2, num_outputs=2>(both)
    sigmoid = Sigmoid(gate)
    silu = Mul(gate, sigmoid)
    gated = Mul(silu, up)
    each = MatMul(gated, down)
    turned = Transpose<perm=[1, 0]>(scattered)
    column = Unsqueeze(turned, last)
    weighted = Mul(each, column)
    mixed = ReduceSum<keepdims=0>(weighted, first)
    y = Add(mixed, h)
}
"""
NAMES = {"gate_up": "layers.0.mlp.gate_up", "down": "layers.0.mlp.down"}


def stacks(seed: int = 0) -> dict[str, np.ndarray]:
    """As the reference holds them: ``[E, 2 F, H]``, rows of the gate first, and ``[E, H, F]``."""
    arrays = random_arrays(seed, gate_up=(EXPERTS, 2 * WIDTH, HIDDEN), down=(EXPERTS, HIDDEN, WIDTH))
    return {name: array * np.float32(0.2) for name, array in arrays.items()}


def every_expert(per_token: int, weights: dict[str, np.ndarray], text: str = TEXT) -> onnx.ModelProto:
    """Every expert for every token, as the canonical program has it."""
    constants = {
        "k": np.array([per_token], np.int64),
        "scale": np.array([1.5], np.float32),
        "last": np.array([-1], np.int64),
        "first": np.array([0], np.int64),
    }
    turned = {name: np.ascontiguousarray(stack.transpose(0, 2, 1)) for name, stack in weights.items()}
    return program(text, constants | turned)


def chosen_experts(model: onnx.ModelProto, weights: dict[str, np.ndarray], *, in_turn: bool = True) -> Rewritten:
    """After the rule, with the weights as the file has them."""
    gate_up = [alternating(torch.from_numpy(part)).numpy() for part in weights["gate_up"]]
    stored = {"gate_up": np.stack(gate_up) if in_turn else weights["gate_up"], "down": weights["down"]}
    return rewritten(model, ChosenExperts(), {name: numpy_helper.from_array(a, name) for name, a in stored.items()})


def feeds(*, seed: int = 1, bias: np.ndarray | None = None, tokens: int = TOKENS) -> dict[str, np.ndarray]:
    values = random_arrays(seed, h=(tokens, HIDDEN), scores=(tokens, EXPERTS), bias=(EXPERTS,))
    return values | {"scores": 1 / (1 + np.exp(-values["scores"])), "bias": values["bias"] if bias is None else bias}


@pytest.mark.parametrize("per_token", [1, 2, 5])
@pytest.mark.parametrize("tokens", [1, 7, 70])
def test_the_chosen_alone_are_all_weighted(per_token: int, tokens: int) -> None:
    """Weights that sum to nothing in particular, too."""
    weights = stacks()
    before = every_expert(per_token, weights)
    after = chosen_experts(before, weights)
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators["MoE"] == 1
    assert not {"MatMul", "Split", "Transpose"} & after.operators.keys()
    given = feeds(tokens=tokens)
    assert_equal(run(after.model, given), run(before, given), 1e-5)


def test_all_tokens_to_one_expert_and_none_to_the_others() -> None:
    weights = stacks()
    before = every_expert(1, weights)
    after = chosen_experts(before, weights)
    given = feeds(bias=np.array([0, 0, 9, 0, 0], np.float32))
    expected = run(before, given)
    assert_equal(run(after.model, given), expected, 1e-5)
    # An expert without a token does not count, whatever it holds; the one that has them all does.
    for expert, counts in ((0, False), (2, True)):
        other = {name: stack.copy() for name, stack in weights.items()}
        other["down"][expert] = 1e9
        changed = run(chosen_experts(every_expert(1, other), other).model, given)["y"]
        assert np.allclose(changed, expected["y"], atol=1e-5) is not counts


def test_weights_that_vanish_are_no_answer_at_all() -> None:
    """Sigmoids underflow together: officially 0 / 1e-20."""
    weights = stacks()
    before = every_expert(2, weights)
    given = feeds() | {"scores": np.zeros((TOKENS, EXPERTS), np.float32)}
    assert_equal(run(chosen_experts(before, weights).model, given), {"y": given["h"]})


def test_rows_not_in_turn_are_other_experts() -> None:
    weights = stacks()
    before = every_expert(2, weights)
    given = feeds()
    found = run(chosen_experts(before, weights, in_turn=False).model, given)["y"]
    assert np.abs(found - run(before, given)["y"]).max() > 0.1


def test_a_bias_rounded_to_bfloat16_chooses_others() -> None:
    """The control of routing: biases lie close together and far from 0, and decide by what bfloat16 rounds away."""
    weights = stacks()
    after = chosen_experts(every_expert(2, weights), weights).model
    bias = (8 + 0.05 * np.arange(EXPERTS)).astype(np.float32)
    given = feeds(bias=bias)
    given["scores"] = 0.5 + 0.001 * given["scores"]
    rounded = torch.from_numpy(bias).bfloat16().float().numpy()
    exact, other = run(after, given)["y"], run(after, given | {"bias": rounded})["y"]
    assert np.abs(exact - other).max() > 0.1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 7, 70])
def test_integers_weigh_by_the_router_itself(bits: int, tokens: int) -> None:
    """4 bits with activations as they are equal products with the weights they stand for; 8 bits round activations."""
    form = ExpertWeights(bits=bits, block=32, accuracy_level=0)
    weights = {name: torch.from_numpy(stack) for name, stack in stacks().items()}
    kept = {name: decode(form, w.flatten(0, 1)).view(w.shape).numpy() for name, w in weights.items()}
    before = every_expert(2, kept)
    middle = renamed(chosen_experts(before, kept).model)
    in_turn = weights | {"gate_up": torch.stack([alternating(part) for part in weights["gate_up"]])}
    stored: dict[str, onnx.TensorProto] = {}
    for name, stack in in_turn.items():
        made = stored_tensors(form, stack.flatten(0, 1), NAMES[name])
        experts, rows, columns = stack.shape
        for spec in form.stacked_tensors(NAMES[name], experts, rows, columns, "float32"):
            made[spec.name].dims[:] = spec.shape()
        stored |= made
    formats = dict.fromkeys(NAMES.values(), WeightFormats(form))
    after = rewritten(middle, QuantizedExperts(formats, "float32"), stored)
    assert (after.fired, after.operators["QMoE"], after.operators["MoE"], after.operators["Log"]) == (1, 1, 0, 0)
    given = feeds(tokens=tokens)
    found, expected = run(after.model, given)["y"], run(before, given)["y"]
    needed = np.abs(found - expected).max() / np.abs(expected).max()
    assert needed <= 1e-5 if bits == 4 else 1e-5 < needed <= 0.03


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the names that formats go by."""
    for weight in model.graph.initializer:
        weight.name = NAMES.get(weight.name, weight.name)
    for node in model.graph.node:
        node.input[:] = [NAMES.get(name, name) for name in node.input]
    return model


def test_what_is_not_quantized_stays() -> None:
    weights = stacks()
    middle = chosen_experts(every_expert(2, weights), weights).model
    assert_left_alone(middle, QuantizedExperts({}, "float32"))


def test_near_misses() -> None:
    """Weights that are no stack; a number of experts that is no constant; another sum."""
    weights = stacks()
    flat = TEXT.replace("each = MatMul(gated, down)", "each = MatMul(gated, x)")
    assert_left_alone(
        every_expert(
            2,
            weights,
            flat.replace("gated, x", "gated, h_turned")
            .replace("    x = Mul(h, scale)", "    h_turned = Expand(turned_h, shape)\n    x = Mul(h, scale)")
            .replace("float[5] bias", "float[5] bias, float[64, 32] turned_h, int64[2] shape"),
        ),
        ChosenExperts(),
    )
    unknown = TEXT.replace("float[5] bias", "float[5] bias, int64[1] many").replace("(choice, k)", "(choice, many)")
    reason = "how many experts a token has is not a constant"
    assert_left_alone(every_expert(2, weights, unknown), ChosenExperts(), reason)
    other = TEXT.replace("column = Unsqueeze(turned, last)", "column = Unsqueeze(zeros_turned, last)").replace(
        "    turned =", "    zeros_turned = Transpose<perm=[1, 0]>(zeros)\n    turned ="
    )
    assert_left_alone(every_expert(2, weights, other), ChosenExperts())
