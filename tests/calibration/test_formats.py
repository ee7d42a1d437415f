"""A weight's stored parts, in file order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from glm_export.calibration.formats import pieces
from glm_export.calibration.formats.blockwise import dequantize_rows, pack_integers, quantize_rows
from glm_export.calibration.formats.codec import PrequantizedWeight, encode
from glm_export.calibration.quantize import largest_magnitudes
from glm_export.spec.weight_formats import BlockWeights, ChannelWeights, QdqWeights, WeightFormat


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_rounded_beforehand_is_stored_part_by_part(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers of all rows, then scales: the same bytes as those of the weight it stands for."""
    form = BlockWeights(bits=bits, block=32)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS", 100)
    weight_NK = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    rows = quantize_rows(weight_NK, form)
    integers = torch.round(
        dequantize_rows(rows, form, 64).view(9, 2, 32) / rows.scales.float().unsqueeze(-1)
    ).to(torch.int8).view(9, 64)  # fmt: skip
    before = PrequantizedWeight(integers=integers, scales=rows.scales)
    found, expected = (
        {
            part: torch.cat([tensor.reshape(-1) for at, tensor in stored if at == part])
            for part in sorted({at for at, _ in stored})
        }
        for stored in (list(encode(form, weight_NK, before)), list(encode(form, weight_NK)))
    )
    assert found.keys() == expected.keys() == {0, 1}
    assert all(torch.equal(found[part], expected[part]) for part in expected)


FORMS = {
    "4 bits": BlockWeights(bits=4, block=32),
    "4 bits, zero points": BlockWeights(bits=4, block=32, symmetric=False),
    "8 bits": BlockWeights(bits=8, block=64),
    "a channel": ChannelWeights(),
    "int8, Q/DQ": QdqWeights(dtype="int8"),
    "int4, Q/DQ": QdqWeights(dtype="int4", block=32),
    "float8, Q/DQ": QdqWeights(dtype="float8e4m3fn"),
}


def whole_parts(form: WeightFormat, weight_NK: Tensor) -> list[Tensor]:
    """The bytes of every stored tensor, put together: a piece is valid until the next one."""
    found: dict[int, list[Tensor]] = {}
    for at, part in encode(form, weight_NK):
        found.setdefault(at, []).append(part.reshape(-1).view(torch.uint8).clone())
    return [torch.cat(found[at]) for at in sorted(found)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_bytes_are_the_same_however_a_weight_is_cut(
    form: WeightFormat, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_NK = torch.randn(40, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight_NK[3], weight_NK[5, 32:64] = 0, 0
    before = weight_NK.clone()
    expected = whole_parts(form, weight_NK)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS", 1)
    found = whole_parts(form, weight_NK)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(weight_NK, before)
    # The control: one weight more is seen.
    weight_NK[7, 7] += 0.5
    assert not all(torch.equal(*pair) for pair in zip(whole_parts(form, weight_NK), expected, strict=True))


@pytest.mark.parametrize("count", [1, 2, 31, 32])
def test_two_integers_share_a_byte_the_first_one_low(count: int) -> None:
    integers = torch.randint(0, 16, (3, 5, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    filled = torch.nn.functional.pad(integers, (0, count % 2)).int()
    assert torch.equal(pack_integers(integers, 4).int(), filled[..., 0::2] + 16 * filled[..., 1::2])
    # Of a view as well, whose pairs do not lie side by side.
    assert torch.equal(pack_integers(integers.transpose(0, 1), 4), pack_integers(integers, 4).transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_largest_magnitudes_are_those_numpy_finds(dtype: torch.dtype, dim: int) -> None:
    values = torch.randn(50, 77, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[2], values[4, 4], values[:, 6] = 0, -1000, -values[:, 5].abs()
    expected = np.abs(values.float().numpy()).max(axis=dim)
    assert np.array_equal(largest_magnitudes(values, dim=dim).numpy(), expected)
    values[9, 9] = torch.nan
    assert largest_magnitudes(values, dim=dim).isnan().sum() == 1
