"""How many bytes of weights a step reads: all of a weight, of a table one row a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from glm_export.graphs.weight_traffic import TABLES, program_weight_traffic

MICROSOFT = "com.microsoft"
READ_BY_ROW = [
    ("", "Gather", 0),
    ("", "RotaryEmbedding", 1), ("", "RotaryEmbedding", 2),
    (MICROSOFT, "RotaryEmbedding", 2), (MICROSOFT, "RotaryEmbedding", 3),
    (MICROSOFT, "GatherBlockQuantized", 0), (MICROSOFT, "GatherBlockQuantized", 2),
    (MICROSOFT, "GatherBlockQuantized", 3),
    (MICROSOFT, "GroupQueryAttention", 7), (MICROSOFT, "GroupQueryAttention", 8),
]  # fmt: skip
ROWS, COLUMNS, BATCH = 10, 4, 3


def traffic(folder: Path, domain: str, operator: str, index: int) -> int:
    """Of a program whose one weight is that input of that operator."""
    inputs = ["x"] * index + ["table"]
    node = onnx.helper.make_node(operator, inputs, ["y"], domain=domain)
    table = onnx.numpy_helper.from_array(np.zeros((ROWS, COLUMNS), np.float32), "table")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [table])), folder / "model.onnx")
    return program_weight_traffic(folder / "model.onnx", batch=BATCH)


@pytest.mark.parametrize(("domain", "operator", "index"), READ_BY_ROW)
def test_tables_are_read_by_row(domain: str, operator: str, index: int, tmp_path: Path) -> None:
    assert traffic(tmp_path, domain, operator, index) == BATCH * COLUMNS * 4
    # The next input of the same operator is no table, or one of the list.
    if (domain, operator, index + 1) not in READ_BY_ROW:
        assert traffic(tmp_path, domain, operator, index + 1) == ROWS * COLUMNS * 4


def test_the_list_is_whole() -> None:
    assert {(domain, operator, index) for (domain, operator), tables in TABLES.items() for index in tables} == {
        *READ_BY_ROW
    }
