"""A weight's stored parts, in file order."""

from __future__ import annotations

import pytest
import torch

from glm_export.calibration.formats import pieces
from glm_export.calibration.formats.blockwise import dequantize_rows, quantize_rows
from glm_export.calibration.formats.codec import PrequantizedWeight, encode
from glm_export.spec.weight_formats import BlockWeights


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
