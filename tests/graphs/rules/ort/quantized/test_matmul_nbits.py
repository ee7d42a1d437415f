"""Products with integers of a few bits, one scale a block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.ort.quantized import matmul_nbits
from glm_export.graphs.rules.ort.quantized.quantized_matmul import QuantizedMatMul
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.spec.weight_formats import BlockWeights, WeightFormats
from tests.helpers.small_programs import program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 24, 96
INT8 = 4
"""ONNX Runtime's level of accuracy at which inputs may be rounded to 8 bits."""
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), bias=(ROWS,), x=(2, 3, COLUMNS))
PRODUCT = f"""g (float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{
    product = MatMul (x, weight)
    sum = Add (product, bias)
    y = Neg (sum)
}}"""


def rounded(x: np.ndarray, block: int) -> np.ndarray:
    """Inputs as ONNX Runtime's 8-bit products see them: int8, symmetric, a scale for each block of a row."""
    missing = -x.shape[-1] % block
    blocks = np.pad(x, ((0, 0), (0, 0), (0, missing))).reshape(*x.shape[:-1], -1, block)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return (np.round(blocks / scales) * scales).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]].astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("exact", [True, False])
def test_numbers(bits: int, symmetric: bool, block: int, exact: bool) -> None:
    """At level 0 the product with the weight as its format keeps it; left to itself inputs are rounded as well."""
    form = BlockWeights(bits=bits, block=block, symmetric=symmetric, **({"accuracy_level": 0} if exact else {}))
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
    assert attributes == sizes | {"accuracy_level": 0 if exact else INT8}
    found = run(after.model, ARRAYS)["y"]
    kept = decode(form, weight).numpy().T
    as_given, as_rounded = (-(x @ kept + ARRAYS["bias"]) for x in (ARRAYS["x"], rounded(ARRAYS["x"], block)))
    assert np.abs(as_given - as_rounded).max() > 0.01
    # The level is a leave to round: some processors have no such product.
    least = min(np.abs(found - one).max() for one in ((as_given,) if exact else (as_given, as_rounded)))
    assert least < 1e-4
    if bits == 4:  # the control: rounding shows
        assert np.abs(found - run(before, ARRAYS)["y"]).max() > 0.5
