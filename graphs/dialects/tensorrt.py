"""TensorRT 10.15 and later: a cache of fixed size, updated in place, and standard attention over it (opset 24)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from glm_export.graphs.dialect import Dialect
from glm_export.graphs.dialects import onnx as canonical
from glm_export.spec.capabilities import Capabilities
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Cache, Signature

if TYPE_CHECKING:  # rules load onnx
    from glm_export.graphs.rewriter import Rule

# What says where to write and who sees what, once per program; and heads set apart, in every layer.
CACHE_OPS = {"Gather", "GatherND", "LessOrEqual", "Range", "Reshape", "TensorScatter", "Transpose", "Unsqueeze"}
# Every layer takes the heads apart and puts the answer together again.
CHANGES_OF_LAYOUT = 2


def expected_rewrites(config: GlmConfig, signature: Signature) -> Counter[str]:
    """One attention a layer; every gate; the last token where only its logits are wanted."""
    last = int(signature.last_logits_only)
    return Counter({"attention": config.num_layers, "halves": _gates(config), "last_token": last})


def _gates(config: GlmConfig) -> int:
    """Products whose halves are taken apart: the canonical program's splits that are not an attention's."""
    counts = canonical.expected_counts(config)
    return counts["Split"] - counts["Attention"]


def expected_counts(config: GlmConfig) -> Counter[str]:
    """The canonical program's, and two updates of the cache a layer."""
    counts = canonical.expected_counts(config)
    layers = config.num_layers
    # Experts are made of operators that change the layout as well; without them the canonical program has none.
    layout = {} if config.experts else {"Transpose": CHANGES_OF_LAYOUT * layers}
    return Counter(counts | {"TensorScatter": 2 * layers} | layout)


def rules() -> tuple[Rule, ...]:
    """Attention over the static cache, the gates, the last token."""
    from glm_export.graphs.rules.tensorrt.halves import HalvesOnAnAxisOfTheirOwn
    from glm_export.graphs.rules.tensorrt.last_token import LastTokenByIndex
    from glm_export.graphs.rules.tensorrt.static_kv_cache import AttentionOnStaticCache

    return AttentionOnStaticCache(), HalvesOnAnAxisOfTheirOwn(), LastTokenByIndex()


DIALECT = Dialect(
    name="tensorrt",
    opset=24,
    allowed_ops=frozenset(canonical.DIALECT.allowed_ops | CACHE_OPS),
    expected_counts=expected_counts,
    rules=rules,
    expected_rewrites=expected_rewrites,
    cache=lambda _: Cache.STATIC,
    logits=lambda config: "all" if config.prefix_mask else "last",
    can=Capabilities(
        qdq_dtypes=frozenset({"int8", "int4", "float8e4m3fn"}),
        qdq_blocks=True,
        half_scales=True,
        # A GPU adds in 32 bits.
        sums_in_16_bits=False,
        # No integer cache: TensorRT's cache layer holds floats only.
        tensorrt=True,
        # TensorScatter becomes this layer: TensorRT 10.15.
        tensorrt_needs="INetworkDefinition.add_kv_cache_update",
    ),
    runs_on="TensorRT 10.15 and later, TensorRT-RTX; ONNX Runtime (CPU)",
)
