"""Rounding: integers as ONNX has them; SmoothQuant, AWQ and GPTQ as their papers and official code have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from glm_export.calibration import quantize as symmetric
from glm_export.calibration.methods import awq, gptq, smoothquant
from glm_export.calibration.methods.awq import awq_scales, search_ratio
from glm_export.calibration.methods.gptq import GramMatrix, gptq_round
from glm_export.calibration.methods.smoothquant import search_alpha, smoothing_scales
from glm_export.calibration.quantize import dequantize_symmetric, fake_quantize, quantize_symmetric, symmetric_scales
from glm_export.errors import InputError

DEAD = 7
"""A channel of :func:`layer` that no sample reaches."""
GPTQ_CASES = [(7, 32, False), (7, 24, False), (7, None, False), (7, 32, True), (127, None, True), (127, 40, False)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer() -> tuple[Tensor, Tensor]:
    """Samples ``[300, 104]``: correlated, of very different magnitudes, outliers, one dead; weight ``[256, 104]``."""
    samples = normal(300, 104) @ normal(104, 104, seed=1) / 10 * normal(104, seed=2).exp()
    samples[:, [3, 50]] *= 30
    samples[:, DEAD] = 0
    return samples, normal(256, 104, seed=3) * 0.02


def nearest(weight: Tensor, qmax: int, block: int | None) -> Tensor:
    scales = symmetric_scales(weight, qmax=qmax, block=block)
    integers = quantize_symmetric(weight, scales, qmax=qmax, block=block)
    return dequantize_symmetric(integers, scales, block=block)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference."""
    return ((found.double() - expected.double()).abs() / expected.double().abs()).max().item()


# -- integers and float8 -------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 70), block=st.none() | st.integers(1, 80), seed=st.integers(0, 99),
    qmax=st.sampled_from([7, 127]), magnitude=st.sampled_from([1e-44, 1e-20, 1.0, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_symmetric_integers_are_those_of_plain_numpy(
    rows: int, columns: int, block: int | None, seed: int, qmax: int, magnitude: float, dtype: torch.dtype
) -> None:
    values = (normal(rows, columns, seed=seed) * magnitude).to(dtype)
    values[0, : block or columns] = 0
    scales = symmetric_scales(values, qmax=qmax, block=block)
    integers = quantize_symmetric(values, scales, qmax=qmax, block=block)
    back = dequantize_symmetric(integers, scales, block=block)
    width = block or columns
    assert scales.shape == (rows, math.ceil(columns / width))
    assert (scales.dtype, integers.dtype, back.dtype) == (torch.float32, torch.int8, torch.float32)
    for row, found_scales, found_integers, found in zip(
        values.float().numpy(), scales.numpy(), integers.numpy(), back.numpy(), strict=True
    ):
        for index, begin in enumerate(range(0, columns, width)):
            part = row[begin : begin + width]
            scale = np.abs(part).max() / np.float32(qmax) or np.float32(1)
            expected = np.clip(np.rint(part / scale), -qmax, qmax)
            assert found_scales[index] == scale
            assert np.array_equal(found_integers[begin : begin + width], expected)
            assert np.array_equal(found[begin : begin + width], expected.astype(np.float32) * scale)


def test_a_scale_of_zero_gives_zeros() -> None:
    integers = quantize_symmetric(normal(2, 6), torch.tensor([[0.0, 0.01], [0.0, 0.0]]), qmax=127, block=4)
    assert not integers[:, :4].any()
    assert not integers[1].any()
    assert integers[0, 4:].all()


def onnx_round_trip(
    values: np.ndarray, scales: np.ndarray, to: int, *, axis: int = 1, block: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """QuantizeLinear, and DequantizeLinear after it, as the reference evaluator of opset 21 computes them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], axis=axis, block_size=block, output_dtype=to),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=axis, block_size=block),
    ]
    shapes = {"x": values.shape, "s": scales.shape, "y": values.shape}
    x, s, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    q = helper.make_tensor_value_info("q", to, values.shape)
    graph = helper.make_graph(nodes, "round trip", [x, s], [q, y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return tuple(ReferenceEvaluator(model).run(None, {"x": values, "s": scales}))


@pytest.mark.parametrize(
    ("qmax", "block", "to"),
    [(127, None, TensorProto.INT8), (127, 16, TensorProto.INT8), (7, 16, TensorProto.INT4), (7, 24, TensorProto.INT4)],
)
def test_rows_round_as_onnx_rounds_them(qmax: int, block: int | None, to: int) -> None:
    values = normal(6, 64)
    scales = symmetric_scales(values, qmax=qmax, block=block)
    integers = quantize_symmetric(values, scales, qmax=qmax, block=block)
    given, axis = (scales[:, 0], 0) if block is None else (scales, 1)
    quantized, back = onnx_round_trip(values.numpy(), given.numpy(), to, axis=axis, block=block or 0)
    assert np.array_equal(integers.numpy(), quantized.astype(np.int8))
    assert np.array_equal(dequantize_symmetric(integers, scales, block=block).numpy(), back)


# Ties, saturation on both sides, and steps that have no exact inverse.
SPREAD = torch.cat([torch.arange(-300, 300) / 2 * 0.3, normal(4000) * 20, torch.tensor([1e30, -1e30, 1e-30, 0.0])])


@pytest.mark.parametrize("scale", [0.3, 0.1, 1.0, 3e-5])
def test_tensors_round_as_onnx_rounds_them(scale: float) -> None:
    step = np.array(scale, np.float32)
    # The evaluator turns 1e30 into the lowest int32 on its way; the specification saturates.
    values = SPREAD.clamp(-1e9 * scale, 1e9 * scale)
    for qmax, to in ((127, TensorProto.INT8), (7, TensorProto.INT4)):
        back = onnx_round_trip(values.numpy(), step, to)[1]
        assert np.array_equal(fake_quantize(values, scale, qmax=qmax).numpy(), back)
    back = onnx_round_trip(SPREAD.numpy(), step, TensorProto.FLOAT8E4M3FN)[1]
    assert np.array_equal(symmetric.round_float8(SPREAD, scale).numpy(), back)
    assert fake_quantize(SPREAD, scale).max().item() == np.float32(127) * step
    assert fake_quantize(SPREAD, scale).min().item() == np.float32(-128) * step
    # The control: with the inverse of the scale, some ties fall to the other side.
    if scale == 0.3:
        inverse = (values * (1 / torch.tensor(scale))).round().clamp(-128, 127) * torch.tensor(scale)
        assert not torch.equal(inverse, fake_quantize(values, scale))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-60])
@pytest.mark.parametrize("function", [fake_quantize, symmetric.round_float8])
def test_scales_that_are_none_are_refused(function: object, scale: float) -> None:
    with pytest.raises(InputError, match="a scale is positive"):
        function(torch.ones(3), scale)


# -- SmoothQuant ---------------------------------------------------------------------------------------


def official_smoothing(samples: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Equation 4 and ``smooth_ln_fcs``, channel by channel; a channel without activation gets 1."""
    scales = []
    for x, w in zip(samples.double().T, weight.double().T, strict=True):
        x_max, w_max = x.abs().max().item(), max(w.abs().max().item(), 1e-5)
        scales.append(max(x_max**alpha / w_max ** (1 - alpha), 1e-5) if x_max else 1.0)
    return torch.tensor(scales, dtype=torch.float64)


def w8a8_error(samples: Tensor, weight: Tensor, scales: Tensor) -> float:
    smoothed, scaled = samples.double() / scales, weight.double() * scales
    step = smoothed.abs().max() / 127
    x = (smoothed / step).round().clamp(-128, 127) * step
    steps = scaled.abs().amax(1, keepdim=True) / 127
    w = (scaled / steps).round() * steps
    y = samples.double() @ weight.double().T
    return ((x @ w.T - y).square().sum() / y.square().sum()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_smoothquant_is_the_papers(dtype: torch.dtype) -> None:
    samples, weight = (tensor.to(dtype) for tensor in layer())
    x_maxima, w_maxima = samples.abs().amax(0), weight.abs().amax(0)
    choice = search_alpha(samples, x_maxima, weight)
    for alpha in smoothquant.ALPHAS:
        expected = official_smoothing(samples, weight, alpha)
        assert apart(smoothing_scales(x_maxima, w_maxima, alpha), expected) <= 1e-6
        assert choice.errors[alpha] == pytest.approx(w8a8_error(samples, weight, expected), rel=1e-2)
        # The control: exponents the other way round.
        wrong = official_smoothing(samples, weight, 1 - alpha)
        assert alpha == 0.5 or apart(smoothing_scales(x_maxima, w_maxima, alpha), wrong) > 0.1
    assert choice.errors[None] == pytest.approx(w8a8_error(samples, weight, torch.ones(104)), rel=1e-2)
    assert choice.error == min(choice.errors.values()) == choice.errors[choice.alpha]
    assert torch.equal(smoothing_scales(x_maxima, w_maxima, None), torch.ones(104))


def test_smoothquant_tames_an_outlier_channel() -> None:
    samples, weight = normal(200, 64), normal(48, 64, seed=1)
    without = search_alpha(samples, samples.abs().amax(0), weight)
    samples[:, 9] *= 100
    choice = search_alpha(samples, samples.abs().amax(0), weight)
    assert choice.alpha is not None
    assert choice.errors[None] > 5 * choice.error
    assert choice.error < 2 * without.error


def test_smoothquant_leaves_alone_what_it_cannot_better() -> None:
    assert search_alpha(torch.ones(4, 8), torch.ones(8), torch.ones(3, 8)).alpha is None


# -- AWQ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, None), (8, 40)])
def test_awq_is_the_papers(bits: int, block: int | None) -> None:
    """``auto_scale_block``'s search, its asymmetric rounding replaced; in float64, block by block."""
    samples, weight = layer()
    mean, qmax, width = samples.abs().mean(0), 2 ** (bits - 1) - 1, block or 104
    choice = search_ratio(samples, mean, weight, bits=bits, block=block)
    y = samples.double() @ weight.double().T
    for ratio in awq.RATIOS:
        scales = samples.double().abs().mean(0).pow(ratio).clamp(min=1e-4)
        unscaled, scales = scales, scales / (scales.max() * scales.min()).sqrt()
        assert apart(awq_scales(mean, ratio), scales) <= 1e-6
        assert ratio == 0 or apart(awq_scales(mean, ratio), unscaled) > 0.1  # the control
        scaled = weight.double() * scales
        for begin in range(0, 104, width):
            part = scaled[:, begin : begin + width]
            step = part.abs().amax(1, keepdim=True) / qmax
            scaled[:, begin : begin + width] = (part / step).round().clamp(-qmax, qmax) * step
        error = (samples.double() @ (scaled / scales).T - y).square().sum() / y.square().sum()
        assert choice.errors[ratio] == pytest.approx(error.item(), rel=1e-2)
    plain = (samples @ (nearest(weight, qmax, block) - weight).T).square().sum() / y.square().sum()
    assert choice.errors[0] == pytest.approx(plain.item(), rel=1e-3)
    assert choice.error == min(choice.errors.values()) == choice.errors[choice.ratio]
    assert choice.error < 0.7 * choice.errors[0]


# -- GPTQ ----------------------------------------------------------------------------------------------


def official_gptq(
    weight: Tensor, gram: Tensor, qmax: int, block: int | None, by_activity: bool, *, inverted: bool = True
) -> tuple[Tensor, Tensor]:
    """``fasterquant`` in float64, every column's update applied at once: the inverse, its Cholesky factor, the loop."""
    weight, gram, columns = weight.double().clone(), gram.double().clone(), weight.shape[1]
    width, static = block or columns, by_activity or block is None
    dead = gram.diagonal() == 0
    gram[dead, dead] = 1
    weight[:, dead] = 0
    starts = range(0, columns, width)
    scales = torch.stack([weight[:, start : start + width].abs().amax(1) / qmax for start in starts], 1)
    order = gram.diagonal().argsort(descending=True, stable=True) if by_activity else torch.arange(columns)
    weight, gram = weight[:, order], gram[order][:, order]
    gram += torch.eye(columns) * 0.01 * gram.diagonal().mean()
    factor = torch.linalg.cholesky(torch.linalg.inv(gram) if inverted else gram, upper=True)
    integers = torch.zeros(weight.shape)
    for column in range(columns):
        place = int(order[column])
        if not static and column % width == 0:
            scales[:, column // width] = weight[:, column : column + width].abs().amax(1) / qmax
        scale = scales[:, place // width]
        integers[:, place] = (weight[:, column] / scale).round().clamp(-qmax, qmax)
        lost = (weight[:, column] - integers[:, place] * scale) / factor[column, column]
        weight[:, column:] -= lost[:, None] * factor[column, column:]
    return integers, scales


def objective(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    difference = weight.double() - rounded.double()
    return torch.einsum("nk,kl,nl->", difference, gram.double(), difference).item()


def gram_of(samples: Tensor) -> Tensor:
    gram = GramMatrix(samples.shape[-1])
    gram.add(samples)
    return gram.gram_KK


@pytest.mark.parametrize("column_block", [128, 50, 1])
@pytest.mark.parametrize(("qmax", "block", "by_activity"), GPTQ_CASES)
def test_gptq_is_the_official_one(qmax: int, block: int | None, by_activity: bool, column_block: int) -> None:
    samples, weight = layer()
    gram = gram_of(samples)
    given, given_gram = weight.clone(), gram.clone()
    integers, scales = gptq_round(
        weight, gram, qmax=qmax, block=block, column_block=column_block, order_by_activity=by_activity
    )
    assert torch.equal(weight, given)
    assert torch.equal(gram, given_gram)
    expected, expected_scales = official_gptq(weight, gram, qmax, block, by_activity)
    assert (integers == expected).double().mean() >= 0.995
    assert ((scales / expected_scales - 1).abs() <= 1e-4).double().mean() >= 0.995
    found = objective(weight, dequantize_symmetric(integers, scales, block=block), gram)
    values = expected * expected_scales.repeat_interleave(block or 104, 1)[:, :104]
    assert found == pytest.approx(objective(weight, values, gram), rel=1e-3)
    assert found < objective(weight, nearest(weight, qmax, block), gram) / 1.5
    assert not integers[:, DEAD].any()
    # Controls: the inverse forgotten, and the Gram matrix of other columns.
    wrong, _ = official_gptq(weight, gram, qmax, block, by_activity, inverted=False)
    assert (integers == wrong).double().mean() < 0.9
    flipped = gptq_round(weight, gram.flip(0, 1), qmax=qmax, block=block, order_by_activity=by_activity)
    assert objective(weight, dequantize_symmetric(*flipped, block=block), gram) > 1.5 * found


@pytest.mark.parametrize("block", [None, 16, 24])
@pytest.mark.parametrize("by_activity", [False, True])
def test_gptq_without_correlation_is_rounding_to_nearest(block: int | None, by_activity: bool) -> None:
    weight = normal(20, 72)
    integers, scales = gptq_round(weight, torch.eye(72) * 3, qmax=7, block=block, order_by_activity=by_activity)
    expected = symmetric_scales(weight, qmax=7, block=block)
    assert torch.equal(scales, expected)
    assert torch.equal(integers, quantize_symmetric(weight, expected, qmax=7, block=block))


def test_gptq_rounds_the_most_active_columns_first() -> None:
    samples, weight = layer()
    gram = gram_of(samples)

    def found(order_by_activity: bool) -> float:
        rounded = gptq_round(weight, gram, qmax=7, block=32, order_by_activity=order_by_activity)
        return objective(weight, dequantize_symmetric(*rounded, block=32), gram)

    assert found(True) < found(False) / 1.2


def test_gram_matrices_add_up() -> None:
    samples = normal(3, 5, 8).half()
    gram = GramMatrix(8)
    for part in (samples[0], samples[1:], samples[0, :0], samples[2, 4]):
        gram.add(part)
    everything = torch.cat([samples.double().reshape(-1, 8), samples[2, 4].double()[None]])
    assert gram.count == len(everything)
    assert torch.allclose(gram.gram_KK.double(), everything.T @ everything, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"8 channels on their last axis; found \[4, 16\]"):
        gram.add(torch.ones(4, 16))  # twice as long: it would have passed as twice as many


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 90), block=st.none() | st.integers(1, 100), seed=st.integers(0, 99),
    column_block=st.integers(1, 130), by_activity=st.booleans(), samples=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_every_shape_is_rounded(
    rows: int, columns: int, block: int | None, seed: int, column_block: int, by_activity: bool, samples: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    weight, inputs = normal(rows, columns, seed=seed).to(dtype), normal(samples, columns, seed=seed + 1)
    integers, scales = gptq_round(
        weight, gram_of(inputs), qmax=7, block=block, column_block=column_block, order_by_activity=by_activity
    )
    assert integers.shape == weight.shape
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= 7
    assert scales.shape == (rows, math.ceil(columns / (block or columns)))
    assert (scales > 0).all()
    choice = search_ratio(inputs, inputs.abs().mean(0), weight, bits=4, block=block, ratios=(0.0, 0.5))
    assert choice.error <= choice.errors[0]
    smoothed = search_alpha(inputs, inputs.abs().amax(0), weight, alphas=(0.5,))
    assert smoothed.error <= smoothed.errors[None]


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, weight = layer()

    def everything() -> tuple[Tensor, list[float]]:
        integers, _ = gptq_round(weight, gram_of(samples), qmax=7, block=32)
        alphas = search_alpha(samples, samples.abs().amax(0), weight).errors
        ratios = search_ratio(samples, samples.abs().mean(0), weight, bits=4, block=32).errors
        return integers, [*alphas.values(), *ratios.values()]

    integers, errors = everything()
    monkeypatch.setattr(gptq, "PIECE_ROWS", 100)
    monkeypatch.setattr(symmetric, "PIECE_ELEMENTS", 30_000)
    in_pieces, errors_in_pieces = everything()
    assert (integers == in_pieces).double().mean() >= 0.995
    assert errors_in_pieces == pytest.approx(errors, rel=1e-3)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.full((4, 4), math.nan), "not finite"),
        (torch.eye(4).index_fill(0, torch.tensor(2), math.inf), "not finite"),
        (torch.zeros(4, 4), "all zero"),
        (torch.ones(4, 4) - 2 * torch.eye(4), "not positive definite"),
        (torch.eye(3), r"a weight of 4 columns .* found \[3, 3\]"),
    ],
)
def test_gram_matrices_that_are_none_are_refused(gram: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gptq_round(torch.ones(2, 4), gram, qmax=7, block=None)


def test_searches_refuse_what_tells_them_nothing() -> None:
    samples, weight = torch.ones(3, 4), torch.ones(2, 4)
    for message, search in (
        ("not all zero", lambda: search_alpha(samples, samples[0] * 0, weight)),
        ("squared norm of 0", lambda: search_ratio(samples, samples[0], weight * 0, bits=4, block=None)),
        ("squared norm of nan", lambda: search_alpha(samples * math.nan, samples[0], weight)),
        ("share K", lambda: search_ratio(samples, samples[0], torch.ones(2, 5), bits=4, block=None)),
        ("2 to 8 bits", lambda: search_ratio(samples, samples[0], weight, bits=16, block=None)),
        ("alpha is between", lambda: smoothing_scales(samples[0], weight[0], 1.1)),
        ("a ratio is between", lambda: awq_scales(samples[0], -0.1)),
    ):
        with pytest.raises(InputError, match=message):
            search()
