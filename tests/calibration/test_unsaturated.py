"""Integers that processors without VNNI multiply exactly: two neighbours' products are added in 16 bits there."""

from __future__ import annotations

import platform

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from glm_export.calibration import recipes
from glm_export.calibration.formats import encode
from glm_export.calibration.quantize import quantize_symmetric, symmetric_scales, unsaturated_scales
from glm_export.errors import InputError
from glm_export.graphs import dialects
from glm_export.machine.facts import kernel_fields
from glm_export.sessions.onnxruntime.saturation import adds_in_16_bits
from glm_export.spec.weight_formats import ChannelWeights, QdqWeights, WeightFormat

MULTIPLIED: list[WeightFormat] = [
    ChannelWeights(sums_in_16_bits=True),
    QdqWeights(per_token=True, sums_in_16_bits=True),
    QdqWeights(activations=True, sums_in_16_bits=True),
]
FINEST: list[WeightFormat] = [ChannelWeights(), QdqWeights(activations=True), QdqWeights()]
MOST = 255
"""Of an unsigned activation."""
FROM_32_BITS_ON = ("avx512_vnni", "avx_vnni", "amx_int8")


def shapes() -> dict[str, Tensor]:
    """Weights ``[N, K]`` whose neighbours come to much, to nothing, or stand alone."""
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(40, 256, generator=random)
    return {
        "normal": normal,
        "wide": normal**5,
        "one sign": normal.abs(),
        "constant": torch.full((3, 64), -0.7),
        "neighbours cancel": torch.tensor([1.0, -1.0]).repeat(5, 32),
        "odd": normal[:, :77],
        "single": normal[:, :1],
        "zeros": torch.zeros(2, 8),
        "tiny": normal * 1e-38,
        "large": normal * 1e30,
    }


def integers_of(form: WeightFormat, weight_NK: Tensor) -> NDArray[np.int64]:
    """What is stored, ``[K, N]``."""
    parts = [piece.clone() for index, piece in encode(form, weight_NK) if index == 0]
    return torch.cat(parts).reshape(weight_NK.shape[1], -1).numpy().astype(np.int64)


def pairs(integers_KN: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers ``2 i`` and ``2 i + 1`` along K, which stand together: ``[ceil(K / 2), 2, N]``."""
    filled = np.pad(integers_KN, ((0, len(integers_KN) % 2), (0, 0)))
    return filled.reshape(-1, 2, filled.shape[1])


@pytest.mark.parametrize("form", MULTIPLIED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_neighbours_fit_16_bits(form: WeightFormat, dtype: torch.dtype) -> None:
    for name, weight in shapes().items():
        if dtype != torch.float32 and name in {"tiny", "large", "wide"}:
            continue
        integers = integers_of(form, weight.to(dtype))
        sums = np.abs(pairs(integers).sum(axis=1)).max(axis=0)
        assert sums.max() * MOST < 2**15, name
        # And no step is coarser than that asks for: one value takes 127, or two neighbours 127 or 128.
        used = np.maximum(np.abs(integers).max(axis=0), sums)
        assert (used >= 127).all() or name == "zeros", name


@pytest.mark.parametrize("form", FINEST, ids=str)
def test_what_need_not_fit_keeps_its_finest_steps(form: WeightFormat) -> None:
    weight = shapes()["normal"]
    finest = quantize_symmetric(weight, symmetric_scales(weight, qmax=127, block=None), qmax=127, block=None)
    assert (finest.abs().amax(dim=1) == 127).all()
    assert np.array_equal(integers_of(form, weight), finest.t().numpy())


@pytest.mark.parametrize("dialect", dialects.names())
def test_recipes_that_multiply_integers_fit_wherever_processors_may_need_it(dialect: str) -> None:
    can = dialects.load(dialect).can
    found = {
        name: recipes.load(name).carried_by(can)
        for name in recipes.names()
        if name != recipes.KEEP and recipes.load(name).fits(can)
    }
    multiplying = {name for name, recipe in found.items() if recipe.multiplies_integers}
    by_hand = {"int8-token", "int8-static", "int8-smoothquant"}
    assert multiplying == by_hand | ({"int8-dynamic", "int4-int8-prompt"} if dialect == "ort" else set())
    assert {name for name, recipe in found.items() if recipe.sums_in_16_bits} == (
        multiplying if dialect != "tensorrt" else set()
    )


def test_weights_that_multiply_floats_have_nothing_to_fit() -> None:
    with pytest.raises(InputError, match="int8 activations"):
        QdqWeights(sums_in_16_bits=True)


def in_16_bits(rows: NDArray[np.uint8], integers_KN: NDArray[np.int64]) -> NDArray[np.int64]:
    """``rows @ integers`` as ``VPMADDUBSW`` and ``VPMADDWD`` add it."""
    filled = np.pad(rows.astype(np.int64), ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    products = np.einsum("rkp,kpn->rkn", filled, pairs(integers_KN))
    return products.clip(-(2**15), 2**15 - 1).sum(axis=1)


def test_the_sum_in_16_bits_is_the_sum() -> None:
    random = np.random.default_rng(0)
    for weight in shapes().values():
        drawn = random.integers(0, 256, (20, weight.shape[1]))
        rows = np.vstack([np.full_like(drawn[:1], MOST), drawn]).astype(np.uint8)
        integers = integers_of(ChannelWeights(sums_in_16_bits=True), weight)
        assert np.array_equal(in_16_bits(rows, integers), rows.astype(np.int64) @ integers)
    weight = shapes()["normal"]
    rows = np.full((1, weight.shape[1]), MOST, np.uint8)
    finest = quantize_symmetric(weight, symmetric_scales(weight, qmax=127, block=None), qmax=127, block=None)
    finest_KN = finest.t().numpy().astype(np.int64)
    assert not np.array_equal(in_16_bits(rows, finest_KN), rows.astype(np.int64) @ finest_KN)  # the control


def multiplied(rows: NDArray[np.uint8], integers_KN: NDArray[np.int8]) -> NDArray[np.int32]:
    """By ONNX Runtime on this processor."""
    columns, outputs = integers_KN.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "integers"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, columns])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [None, outputs])],
        [numpy_helper.from_array(integers_KN, "integers")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.int32] = session.run(None, {"rows": rows})[0]
    return found


def neighbours_of(most: int, columns: int) -> NDArray[np.int8]:
    """``[K, 33]`` whose neighbours come to exactly so much, either way."""
    random = np.random.default_rng(1)
    first = random.integers(most - 127, 128, (columns // 2, 33)) * random.choice([-1, 1], (columns // 2, 33))
    second = np.where(first >= 0, most, -most) - first
    return np.stack([first, second], axis=1).reshape(columns, 33).astype(np.int8)


@pytest.mark.parametrize("columns", [2, 6, 64, 386, 2048])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 8, 33])
def test_the_runtime_multiplies_such_neighbours_exactly(columns: int, rows: int) -> None:
    given, integers = np.full((rows, columns), MOST, np.uint8), neighbours_of(128, columns)
    assert np.array_equal(multiplied(given, integers), given.astype(np.int64) @ integers.astype(np.int64))


@pytest.mark.skipif(not adds_in_16_bits(), reason="this processor adds products of 8 bits in 32 bits")
def test_one_more_is_too_much() -> None:
    """The control, and why the rule is needed at all: this fails where the runtime has become exact."""
    given, integers = np.full((8, 64), MOST, np.uint8), neighbours_of(129, 64)
    assert not np.array_equal(multiplied(given, integers), given.astype(np.int64) @ integers.astype(np.int64))


def test_scales_are_finite_and_positive() -> None:
    for name, weight in shapes().items():
        scales = unsaturated_scales(weight)
        assert scales.shape == (len(weight), 1)
        assert (scales > 0).all(), name
        assert scales.isfinite().all(), name


@pytest.mark.skipif(platform.system() != "Linux", reason="flags of the processor are read from /proc/cpuinfo")
def test_the_processors_flags_say_what_was_tried() -> None:
    flags = kernel_fields("/proc/cpuinfo").get("flags", "").split()
    x86 = platform.machine() in {"x86_64", "AMD64"}
    assert adds_in_16_bits() == (x86 and not any(flag in flags for flag in FROM_32_BITS_ON))
