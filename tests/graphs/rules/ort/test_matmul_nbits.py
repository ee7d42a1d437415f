"""Products with integers of a few bits, one scale a block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.ort import matmul_nbits
from glm_export.graphs.rules.ort.quantized_matmul import QuantizedMatMul
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.spec.weight_formats import BlockWeights, WeightFormats
from tests.helpers.small_programs import program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 24, 96
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), bias=(ROWS,), x=(2, 3, COLUMNS))
PRODUCT = f"""g (float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{
    product = MatMul (x, weight)
    sum = Add (product, bias)
    y = Neg (sum)
}}"""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_numbers(bits: int, symmetric: bool, block: int, accuracy_level: int) -> None:
    """At level 0 the product with the weight as its format keeps it; at 4 inputs are rounded as well."""
    form = BlockWeights(bits=bits, block=block, symmetric=symmetric, accuracy_level=accuracy_level)
    weight = torch.from_numpy(ARRAYS["weight"])
    before = program(PRODUCT, {"weight": ARRAYS["weight"].T.copy(), "bias": ARRAYS["bias"]})
    rule = QuantizedMatMul(
        {"weight": WeightFormats(form)}, "float32", InputNumbers(), {BlockWeights: matmul_nbits.PRODUCT}
    )
    after = rewritten(before, rule, stored_tensors(form, weight, "weight"))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"MatMulNBits": 1, "Neg": 1}
    node = after.model.graph.node[0]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = {"K": COLUMNS, "N": ROWS, "bits": bits, "block_size": block}
    assert attributes == sizes | {"accuracy_level": accuracy_level}
    found = run(after.model, ARRAYS)["y"]
    kept = -(ARRAYS["x"] @ decode(form, weight).numpy().T + ARRAYS["bias"])
    np.testing.assert_allclose(found, kept, atol=0.25 if accuracy_level else 1e-4)
    if bits == 4:  # the control: rounding shows
        assert np.abs(found - run(before, ARRAYS)["y"]).max() > 0.5
