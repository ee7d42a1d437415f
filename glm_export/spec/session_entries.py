"""What ONNX Runtime is told when it loads a program: by our session, and by ``genai_config.json`` in other loaders."""

from __future__ import annotations

LEAST_ON_CUDA = (1, 31)
"""Masks of bool, grouped heads and captured lookups on CUDA: the first version that has all of them."""

LEAST_FOR_RAGGED = (1, 32)
"""GroupQueryAttention's ``query_seqlens``, on the CPU."""

LEAST_WITH = {"com.microsoft.QMoE": (1, 31), "com.microsoft.GroupQueryAttention.causal": (1, 30)}
"""Operators and attributes as programs use them, and the first version that has them so: of ``QMoE`` router weights
came with 1.26, raw weights with 1.28, ``accuracy_level`` and products of integers with 1.31. ``causal`` is what
prefix families switch off."""

ACCURACY = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Products with dequantized weights are float products; by default their inputs would be rounded to 8 bits as well."""
EXACT_SUMS = {"session.x64quantprecision": "1"}
"""Integers are multiplied in 16 bits in place of 8: slower, and exact without VNNI (``docs/adr/0028``)."""
OF_RECIPE = {
    # ONNX Runtime 1.31 makes an integer product of the Q/DQ of 8-bit floats, which does not take them, and fails.
    "fp8": {"session.disable_quant_qdq": "1"},
}
"""What a recipe's programs need besides."""


def session_entries(recipe: str | None) -> dict[str, str]:
    """Configuration entries of a session, by key; none where nothing is quantized."""
    return {} if recipe is None else ACCURACY | OF_RECIPE.get(recipe, {})
