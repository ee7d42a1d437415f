"""A split that counts its parts becomes one that names their sizes."""

from __future__ import annotations

import numpy as np

from glm_export.graphs.rules.opset17.split import SplitIntoSizes
from tests.helpers.small_programs import assert_equal, assert_left_alone, program, random_arrays, rewritten, run

OUTPUTS = "(float[2, 4] a, float[2, 4] b, float[2, 4] c)"


def test_numbers() -> None:
    before = program(f"g (float[2, 12] x) => {OUTPUTS} {{ a, b, c = Split <axis=-1, num_outputs=3> (x) }}")
    after = rewritten(before, SplitIntoSizes(), opset=17)
    assert (after.fired, after.reasons) == (1, [])
    (node,) = after.model.graph.node
    assert [attribute.name for attribute in node.attribute] == ["axis"]
    feeds = random_arrays(0, x=(2, 12))
    assert_equal(run(after.model, feeds), run(before, feeds), 0)


def test_named_sizes_are_left_alone() -> None:
    text = f"g (float[2, 12] x) => {OUTPUTS} {{ a, b, c = Split <axis=-1> (x, sizes) }}"
    assert_left_alone(program(text, {"sizes": np.array([4, 4, 4])}), SplitIntoSizes())
