"""How quantized weights lie in the file, and which operators read them.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from glm_export.calibration.recipe import EMBEDDING, BlockWeights, ChannelWeights, Forms, QdqWeights, WeightForm
from glm_export.config import GlmConfig
from glm_export.graphs.dialect import Dialect
from glm_export.graphs.rule import MICROSOFT
from glm_export.signature import TensorSpec

LOOKUP = "GatherBlockQuantized"
BLOCK_PRODUCT, CHANNEL_PRODUCT = "MatMulNBits", "DynamicQuantizeMatMul"
PRODUCT = {BlockWeights: BLOCK_PRODUCT, ChannelWeights: CHANNEL_PRODUCT}
PACKED, SCALES, ZERO_POINTS = "packed", "scales", "zero_points"
GROUP_QUERY = f"{MICROSOFT}.GroupQueryAttention"
# Heads are set apart, and integers put behind integers.
CACHE_OPS = {"Concat", "Reshape", "Transpose"}
PROMPT = ".prompt"
"""Behind the name of a weight that has a second form for prompts."""


def stored_parts(name: str, rows: int, columns: int, form: WeightForm, dtype: str) -> list[TensorSpec]:
    """The tensors that stand for a weight ``[N, K]``, in file order; scales have the program's dtype."""
    if isinstance(form, ChannelWeights):
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype="int8", dims=(columns, rows)),
            TensorSpec(name=f"{name}.{SCALES}", dtype="float32", dims=(rows,)),
        ]
    if isinstance(form, QdqWeights):
        scales = (rows,) if form.block is None else (-(-columns // form.block), rows)
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype=form.dtype, dims=(columns, rows)),
            TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=scales),
        ]
    blocks = -(-columns // form.block)
    blob = form.block * form.bits // 8
    # A table's row lies in one piece, a product's block by block: the same bytes.
    dims = (rows, blocks * blob) if name == EMBEDDING else (rows, blocks, blob)
    parts = [
        TensorSpec(name=f"{name}.{PACKED}", dtype="uint8", dims=dims),
        TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=(rows, blocks)),
    ]
    if not form.symmetric:
        width = -(-blocks * form.bits // 8)
        parts.append(TensorSpec(name=f"{name}.{ZERO_POINTS}", dtype="uint8", dims=(rows, width)))
    return parts


def quantized_dialect(dialect: Dialect, forms: Mapping[str, Forms], *, kv: bool = False) -> Dialect:
    """The dialect with the products that weights in these forms need, each once.

    Args:
        dialect: the target.
        forms: of the weights that are quantized.
        kv: keys and values are kept as integers.
    """
    linear = [both for name, both in forms.items() if name != EMBEDDING]
    explicit = [both.step for both in linear if isinstance(both.step, QdqWeights)]
    rounded_inputs = sum(form.activations for form in explicit)
    every = [form for both in linear for form in both if form is not None]
    products = Counter(f"{MICROSOFT}.{PRODUCT[type(form)]}" for form in every if type(form) in PRODUCT)
    if EMBEDDING in forms:
        products[f"{MICROSOFT}.{LOOKUP}"] = 1
    choices = sum(both.prompt is not None for both in forms.values())
    extra = {"If", "Size", "Greater"} if choices else set()
    if explicit or kv:
        extra |= {"QuantizeLinear", "DequantizeLinear"}
    if kv:
        extra |= CACHE_OPS

    def expected_counts(config: GlmConfig) -> Counter[str]:
        counts = dialect.expected_counts(config)
        # Where one operator holds attention and cache, it rounds by itself.
        caches = 2 * config.num_layers if kv and not counts[GROUP_QUERY] else 0
        changed = {
            "MatMul": counts["MatMul"] - len(linear) + len(explicit),
            "If": choices,
            "QuantizeLinear": rounded_inputs + caches,
            "DequantizeLinear": rounded_inputs + len(explicit) + caches,
        }
        # Some dialects count operators that an integer cache is made of as well.
        free = CACHE_OPS if caches else set()
        return Counter({name: count for name, count in counts.items() if name not in free} | products | changed)

    allowed = dialect.allowed_ops | products.keys() | extra
    return replace(dialect, allowed_ops=allowed, expected_counts=expected_counts)
