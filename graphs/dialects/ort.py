"""ONNX Runtime's fused operators: attention with its rotation and a shared cache, norms with their residual, experts.

Opset 23. Routing stays as it is, in float32; the chosen experts alone are computed, see ``docs/adr/0021``.

Families with a prefix mask give it to the same operator as a bias; see ``docs/adr/0020``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from glm_export.graphs.dialect import Dialect
from glm_export.graphs.dialects import onnx as canonical
from glm_export.graphs.rules.ort import fuses_rotation
from glm_export.spec.capabilities import Capabilities, IntegerCache
from glm_export.spec.config import GlmConfig, Norm
from glm_export.spec.signature import LOGITS, Cache, Signature

if TYPE_CHECKING:  # rules load onnx
    from glm_export.graphs.rewriter import Rule

GROUP_QUERY = "com.microsoft.GroupQueryAttention"
SKIP_NORM = {
    Norm.RMS: "com.microsoft.SkipSimplifiedLayerNormalization",
    Norm.LAYER: "com.microsoft.SkipLayerNormalization",
}
MIXTURE = "com.microsoft.MoE"
# Weights as the operator takes them: logarithms, and their sum behind it.
MIXTURE_OPS = {MIXTURE, "Log", "Max"}
LENGTH_OPS = {
    "ReduceSum", "Sub", "Cast", "Shape", "Squeeze", "Min", "Unsqueeze", "GatherND", "Max", "CumSum", "Equal", "Add",
    "Range", "Or", "Where",
}  # fmt: skip


def rotations_counted(config: GlmConfig) -> int:
    """Rotations before the attention whose positions the program counts: those of tables too narrow for it."""
    if config.rotary is None or config.prefix_mask or fuses_rotation(config.rotary.dim // 2):
        return 0
    return 2 * config.num_layers


def apart(config: GlmConfig) -> int:
    """Rotations that stand before the attention instead of within it: also those by two positions a token."""
    return 2 * config.num_layers if config.rotary and config.prefix_mask else rotations_counted(config)


def skip_norms(config: GlmConfig) -> int:
    """Norms that read a sum: all but the first, those of q and k, and those inside the sandwich.

    Learned positions are added to the embedding, so there the first reads a sum too.
    """
    return 2 * config.num_layers - 1 + config.final_norm + (config.rotary is None)


def expected_rewrites(config: GlmConfig, signature: Signature) -> Counter[str]:
    """One attention a layer; every norm of a sum; the last token where only its logits are wanted."""
    attention = "prefix_attention" if config.prefix_mask else "attention"
    return Counter(
        {
            "positions": rotations_counted(config),
            attention: config.num_layers,
            "skip_norm": skip_norms(config),
            "experts": len(config.expert_layers),
            "last_token": int(signature.most_logits is not None),
        }
    )


def expected_ragged(config: GlmConfig, signature: Signature) -> Counter[str]:
    """Where attention is causal; new tokens are counted for the last one's place, and for rotations beside it."""
    if config.prefix_mask:
        return Counter()
    counted = signature.most_logits is not None or apart(config) > 0
    told = {"told_lengths": config.num_layers, "told_new_tokens": int(counted)}
    last = int(signature.most_logits is not None)
    outputs = len(by_token(signature))
    unpadded = {"told_embedding": 1, "told_rotation": apart(config), "told_rows": config.num_layers}
    return Counter(told | unpadded | {"told_last_token": last, "told_outputs": outputs})


def by_token(signature: Signature) -> frozenset[str]:
    """Outputs that say something of every token of a call."""
    logits = frozenset({LOGITS} if signature.most_logits is None else ())
    return logits | frozenset(signature.hidden_states)


def expected_counts(config: GlmConfig) -> Counter[str]:
    """The canonical products; rotations and splits of q, k and v are gone where attention holds them."""
    counts = canonical.expected_counts(config)
    layers = config.num_layers
    norm = canonical.NORM_OP[config.norm]
    norms = {SKIP_NORM[config.norm]: skip_norms(config), norm: counts[norm] - skip_norms(config)}
    attention = {
        "Attention": 0,
        "RotaryEmbedding": apart(config),
        GROUP_QUERY: layers,
        # What stands between the projection and the attention is done to q and k apart.
        "Split": counts["Split"] - (0 if config.qk_norm or apart(config) else layers),
    }
    # What counts lengths are operators that experts are made of as well.
    kept = {name: count for name, count in counts.items() if count or name not in LENGTH_OPS}
    mixtures = len(config.expert_layers)
    products = {"MatMul": counts["MatMul"] - 2 * mixtures, MIXTURE: mixtures}
    lowered = Counter(kept | norms | attention | products)
    # Each mixture's gate and up are split within the operator.
    lowered["Split"] -= mixtures
    return lowered


def rules() -> tuple[Rule, ...]:
    """Attention with its rotation and cache, norms with their sums, the chosen experts, the last token."""
    from glm_export.graphs.rules.ort.experts import ChosenExperts
    from glm_export.graphs.rules.ort.group_query_attention import AttentionToGroupQuery
    from glm_export.graphs.rules.ort.last_token import LastTokenOfEachRow
    from glm_export.graphs.rules.ort.positions import PositionsFromLengths
    from glm_export.graphs.rules.ort.prefix_group_query import PrefixAttentionToGroupQuery
    from glm_export.graphs.rules.ort.skip_norm import AddAndNorm

    return (
        PositionsFromLengths(),
        AttentionToGroupQuery(),
        PrefixAttentionToGroupQuery(),
        AddAndNorm(),
        ChosenExperts(),
        LastTokenOfEachRow(),
    )


def ragged_rules(signature: Signature) -> tuple[Rule, ...]:
    """How many tokens each row has is told, in place of counted; attention alone sees rows, and padding in them."""
    from glm_export.graphs.rules.ort.query_lengths import AttentionToldLengths, NewTokensTold
    from glm_export.graphs.rules.ort.unpadded import (
        LastOfRealTokens,
        RealTokensEmbedded,
        RowsAttended,
        RowsTold,
        RowsTurned,
    )

    return (
        AttentionToldLengths(),
        NewTokensTold(),
        RealTokensEmbedded(),
        RowsTurned(),
        RowsAttended(),
        LastOfRealTokens(),
        RowsTold(by_token(signature)),
    )


DIALECT = Dialect(
    name="ort",
    opset=23,
    allowed_ops=frozenset(
        canonical.DIALECT.allowed_ops | LENGTH_OPS | MIXTURE_OPS | {GROUP_QUERY, *SKIP_NORM.values()}
    ),
    expected_counts=expected_counts,
    rules=rules,
    expected_rewrites=expected_rewrites,
    ragged_rules=ragged_rules,
    expected_ragged=expected_ragged,
    cache=lambda _: Cache.SHARED,
    logits=lambda _: "last",
    # Block and 4-bit Q/DQ say nothing here that its own operators do not say faster.
    can=Capabilities(
        stored_products=True,
        half_scales=True,
        # The fused operator rounds by itself.
        integer_cache=lambda _: IntegerCache.FUSED,
        grouped_experts=True,
        recent_logits=True,
    ),
    runs_on="ONNX Runtime (CPU, CUDA), onnxruntime-genai",
)
