"""What a recipe adds to a dialect: rules for weights and caches, and the operators they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from glm_export.graphs.dialect import Dialect
from glm_export.graphs.rewriter import MICROSOFT, CountedRule
from glm_export.graphs.rules.ort.experts import MOE, QMOE, QuantizedExperts
from glm_export.graphs.rules.ort.quantized import dynamic_quantize_matmul, matmul_nbits
from glm_export.graphs.rules.ort.quantized.gather_block_quantized import LOOKUP, QuantizedGather
from glm_export.graphs.rules.ort.quantized.int8_kv_cache import GroupQueryOfIntegers
from glm_export.graphs.rules.ort.quantized.quantized_matmul import QuantizedMatMul, StoredProduct
from glm_export.graphs.rules.qdq.kv_cache import AttentionOfIntegers, ConcatOfIntegers
from glm_export.graphs.rules.qdq.matmul import ExplicitMatMul, InputNumbers
from glm_export.spec.capabilities import Capabilities, IntegerCache
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import past_names
from glm_export.spec.weight_formats import (
    EMBEDDING,
    BlockWeights,
    ChannelWeights,
    ExpertWeights,
    WeightFormat,
    WeightFormats,
)

PRODUCTS: Mapping[type[WeightFormat], StoredProduct] = {
    BlockWeights: matmul_nbits.PRODUCT,
    ChannelWeights: dynamic_quantize_matmul.PRODUCT,
}
"""The operator of each format that is not explicit."""


def quantizing_rules(
    formats: Mapping[str, WeightFormats], dtype: str, numbers: InputNumbers | None = None, *, opset: int
) -> list[CountedRule]:
    """The rules that put weights into these formats in a dialect of an opset, and how often each must fire."""
    numbers = numbers or InputNumbers()
    explicit = sum(both.decode.explicit for both in formats.values())
    lookups = int(EMBEDDING in formats)
    # Recipes give the embedding block weights: the runtime looks up in no other format.
    table = cast("BlockWeights", formats[EMBEDDING].decode) if lookups else None
    stacks = expert_names(formats)
    # What experts were made of still reads their stacks until lowering is done.
    linear = {name: both for name, both in formats.items() if name not in stacks}
    rules: list[CountedRule] = [
        (QuantizedMatMul(linear, dtype, numbers, PRODUCTS), len(linear) - lookups - explicit),
        (ExplicitMatMul(linear, dtype, numbers, opset), explicit),
        (QuantizedGather(table, dtype), lookups),
        (QuantizedExperts(formats, dtype), len(stacks) // STACKS),
    ]
    return rules if formats else []


STACKS = 2
"""A mixture's: gate and up, and down."""


def expert_names(formats: Mapping[str, WeightFormats]) -> list[str]:
    """The stacks of routed experts among quantized weights."""
    return [name for name, both in formats.items() if isinstance(both.decode, ExpertWeights)]


KvScales = Sequence[tuple[float, float]]
"""Of key and value, by layer."""


def quantized_cache_rules(scales: KvScales, dtype: str, config: GlmConfig, can: Capabilities) -> list[CountedRule]:
    """The rule that keeps integers in a dialect with these capabilities, and how often it must fire."""
    if not scales or can.integer_cache is None:
        return []
    scale_of = dict(zip((name for i in range(len(scales)) for name in past_names(i)), np.ravel(scales), strict=True))
    rules: dict[IntegerCache, CountedRule] = {
        IntegerCache.CONCAT: (ConcatOfIntegers(scale_of, dtype), 2 * config.num_layers),
        IntegerCache.FUSED: (GroupQueryOfIntegers(scale_of), config.num_layers),
        IntegerCache.ATTENTION: (AttentionOfIntegers(scale_of, dtype), config.num_layers),
    }
    return [rules[can.integer_cache(config)]]


GROUP_QUERY = f"{MICROSOFT}.GroupQueryAttention"
# Heads are set apart, and integers put behind integers.
CACHE_OPS = {"Concat", "Reshape", "Transpose"}
# Each row's largest magnitude, and what is divided and multiplied by it.
TOKEN_OPS = {"Abs", "ReduceMax", "Max", "Div", "Mul"}


def quantized_dialect(dialect: Dialect, formats: Mapping[str, WeightFormats], *, kv: bool = False) -> Dialect:
    """The dialect with the products that weights in these formats need, each once.

    Args:
        dialect: the target.
        formats: of the weights that are quantized.
        kv: keys and values are kept as integers.
    """
    stacks = expert_names(formats)
    linear = [both for name, both in formats.items() if name != EMBEDDING and name not in stacks]
    explicit = [both.decode for both in linear if both.decode.explicit]
    tokens = sum(form.rounds_each_token for form in explicit)
    rounded_inputs = sum(form.activation_dtype is not None for form in explicit) + tokens
    every = [form for both in linear for form in both if form is not None]
    products = Counter(f"{MICROSOFT}.{PRODUCTS[type(form)].operator}" for form in every if not form.explicit)
    if EMBEDDING in formats:
        products[f"{MICROSOFT}.{LOOKUP}"] = 1
    mixtures = len(stacks) // STACKS
    if mixtures:
        products[f"{MICROSOFT}.{QMOE}"] = mixtures
    choices = sum(both.prefill is not None for both in formats.values())
    extra = {"If", "Size", "Greater"} if choices else set()
    if explicit or kv:
        extra |= {"QuantizeLinear", "DequantizeLinear"}
    if tokens:
        extra |= TOKEN_OPS
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
            "ReduceMax": tokens,
        }
        if mixtures:
            changed[f"{MICROSOFT}.{MOE}"] = counts[f"{MICROSOFT}.{MOE}"] - mixtures
        changed |= {name: counts[name] + tokens for name in TOKEN_OPS if tokens and name in counts}
        # Some dialects count operators that an integer cache is made of as well.
        free = CACHE_OPS if caches else set()
        return Counter({name: count for name, count in counts.items() if name not in free} | products | changed)

    allowed = dialect.allowed_ops | products.keys() | extra
    return replace(dialect, allowed_ops=allowed, expected_counts=expected_counts)
