"""Products alone: as many as were asked for, in the form that was asked for, and they multiply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from glm_export.graphs.products import products_model, weight_bytes, write_products
from glm_export.performance.sweep import FORMS
from glm_export.sessions.onnxruntime.runtime import graph_session
from glm_export.spec.weight_formats import BlockWeights, WeightFormat

ROWS, COLUMNS, COPIES = 96, 256, 3
BITS = {"float32": 32, "W8A8, per token": 8, "W8A8, per tensor": 8} | {
    name: form.bits for name, form in FORMS.items() if isinstance(form, BlockWeights)
}


@pytest.mark.parametrize("name", FORMS)
def test_they_multiply_in_their_form(name: str, tmp_path: Path) -> None:
    form: WeightFormat | None = FORMS[name]
    model = products_model(form, rows_N=ROWS, columns_K=COLUMNS, copies=COPIES)
    # Scales are the rest: a float for each block of 32 at most.
    assert COPIES * ROWS * COLUMNS * BITS[name] / 8 <= weight_bytes(model)
    assert weight_bytes(model) <= 1.26 * COPIES * ROWS * COLUMNS * BITS[name] / 8 + 200
    graph, nbytes = write_products(tmp_path / "here", form, rows_N=ROWS, columns_K=COLUMNS, copies=COPIES)
    assert nbytes == weight_bytes(model)
    session = graph_session(graph, 1)
    assert len(session.get_outputs()) == COPIES
    x = np.random.default_rng(0).standard_normal((5, COLUMNS)).astype(np.float32)
    found = session.run(None, {value.name: x for value in session.get_inputs()})
    twice = session.run(None, {value.name: 2 * x for value in session.get_inputs()})
    for one, other in zip(found, twice, strict=True):
        assert one.shape == (5, ROWS)
        assert np.abs(one).max() > 0
        # However a form rounds its input, it is linear but for that.
        np.testing.assert_allclose(other, 2 * one, atol=0.02 * np.abs(one).max())


def test_a_float_product_is_numpys(tmp_path: Path) -> None:
    model = products_model(None, rows_N=ROWS, columns_K=COLUMNS, copies=1)
    (weight,) = (value.const_value for value in model.graph.initializers.values())
    assert weight is not None
    kept = weight.numpy().copy()
    ir.save(model, tmp_path / "model.onnx", external_data="weights")
    x = np.random.default_rng(0).standard_normal((2, COLUMNS)).astype(np.float32)
    (found,) = graph_session(tmp_path / "model.onnx", 1).run(None, {"x0": x})
    np.testing.assert_allclose(found, x @ kept, rtol=1e-4, atol=1e-4)
    assert np.abs(found - x @ kept[:, ::-1]).max() > 0.1  # the control
