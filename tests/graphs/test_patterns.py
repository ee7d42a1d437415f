"""The two formats of each pattern say the same: PyTorch in eager mode, the ONNX operator while exporting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import Glm4Config, GlmConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from glm_export.graphs.patterns.attention import causal_mask, grouped_attention, prefix_mask
from glm_export.graphs.patterns.experts import mix_experts, route
from glm_export.graphs.patterns.rotary import rotary_embedding, rotary_tables, rotation
from glm_export.spec.config import RotaryConfig
from glm_export.spec.weight_map import HeadwiseQkv


def _tables(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(RotaryConfig(dim=dim), 64)


@given(
    batch=st.integers(1, 3), length=st.integers(1, 5), heads=st.integers(1, 4), pairs=st.integers(1, 4),
    straight=st.integers(0, 3), interleaved=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=50)
def test_rotary_forms_are_equal(
    batch: int, length: int, heads: int, pairs: int, straight: int, interleaved: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    head_dim = 2 * pairs + 2 * straight
    x = torch.randn(batch, length, heads * head_dim)
    cos, sin = _tables(2 * pairs)
    positions = torch.randint(0, 64, (batch, length))
    turn = rotation(cos, sin, positions)
    ours = rotary_embedding(x, turn, num_heads=heads, interleaved=interleaved)
    operator = torch.onnx.ops.rotary_embedding(
        x, cos, sin, positions, interleaved=interleaved, num_heads=heads, rotary_embedding_dim=2 * pairs
    )
    torch.testing.assert_close(ours, operator, atol=1e-6, rtol=1e-6)
    if pairs > 1 and bool((positions > 0).any()):  # the control: the other pairing is something else
        other = rotary_embedding(x, turn, num_heads=heads, interleaved=not interleaved)
        assert not torch.allclose(ours, other, atol=1e-4)


@given(
    batch=st.integers(1, 3), length=st.integers(1, 5), past=st.integers(0, 4), kv_heads=st.integers(1, 3),
    share=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=50)
def test_attention_forms_are_equal(batch: int, length: int, past: int, kv_heads: int, share: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, length, heads * 8) for heads in (kv_heads * share, kv_heads, kv_heads))
    past_key, past_value = torch.randn(2, batch, kv_heads, past, 8)
    real = torch.ones(batch, past + length, dtype=torch.int64)
    real[0, : (past + length) // 2] = 0
    mask = causal_mask(real, length)
    heads = {"num_heads": kv_heads * share, "kv_heads": kv_heads}
    ours = grouped_attention(q, k, v, mask, past_key, past_value, **heads)
    operator = torch.onnx.ops.attention(
        q, k, v, mask, past_key, past_value, q_num_heads=kv_heads * share, kv_num_heads=kv_heads
    )
    for one, other in zip(ours, operator[:3], strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)


def test_causal_mask_by_hand() -> None:
    """Two past and two new tokens; the first is padding."""
    mask = causal_mask(torch.tensor([[0, 1, 1, 1]]), 2)
    assert mask.tolist() == [[[[False, True, True, False], [False, True, True, True]]]]


def test_padding_queries_see_everything() -> None:
    mask = causal_mask(torch.tensor([[0, 1]]), 2)
    assert mask.tolist() == [[[[True, True], [False, True]]]]


@pytest.mark.parametrize("config_class", [GlmConfig, Glm4Config])
def test_tables_equal_transformers(config_class: type) -> None:
    config = config_class(head_dim=128, partial_rotary_factor=0.5, rope_theta=5e6, max_position_embeddings=512)
    positions = torch.arange(512)[None]
    cos, sin = GlmRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rotary_tables(RotaryConfig(dim=64, base=5e6), 512)
    torch.testing.assert_close(ours[0], cos[0, :, :32], atol=0, rtol=0)
    torch.testing.assert_close(ours[1], sin[0, :, :32], atol=0, rtol=0)


def test_both_patterns_can_be_trained_through() -> None:
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    cos, sin = (table.double() for table in _tables(4))
    empty = torch.zeros(1, 2, 0, 8, dtype=torch.float64)

    def both(x: torch.Tensor) -> torch.Tensor:
        turn = rotation(cos, sin, torch.arange(3)[None])
        turned = rotary_embedding(x, turn, num_heads=2, interleaved=True)
        mask = causal_mask(torch.ones(1, 3, dtype=torch.int64), 3)
        return grouped_attention(turned, turned, x, mask, empty, empty, num_heads=2, kv_heads=2)[0]

    assert torch.autograd.gradcheck(both, (x,))


def test_prefix_mask_lets_every_query_see_itself() -> None:
    given = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    given[..., 0] = True
    assert prefix_mask(given).tolist() == [[[[True, True, False], [True, False, True]]]]


@given(heads=st.integers(1, 3), quarter=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_two_positions_in_one_rotation(heads: int, quarter: int, seed: int) -> None:
    """ChatGLM-6B's own order, written out: each half of a head turned by its own position, then scored."""
    torch.manual_seed(seed)
    head_dim, length = 4 * quarter, 3
    rotary = RotaryConfig(dim=head_dim // 2, interleaved=False, axes=2, float16_frequencies=True)
    cos, sin = rotary_tables(rotary, 32)
    positions = torch.randint(0, 32, (1, 2, length))
    official = torch.randn(3, heads, head_dim, length)  # q, k, v rows, head by head, one column a token

    def own_order(x: torch.Tensor) -> torch.Tensor:
        halves = []
        for axis, half in enumerate(x.chunk(2, dim=1)):
            angle_cos, angle_sin = (table[positions[0, axis]].t().repeat(2, 1) for table in (cos, sin))
            low, high = half.chunk(2, dim=1)
            halves.append(half * angle_cos + torch.cat((-high, low), dim=1) * angle_sin)
        return torch.cat(halves, dim=1)

    expected = torch.einsum("hds,hdt->hst", own_order(official[0]), own_order(official[1]))
    stored = official.transpose(0, 1).reshape(3 * heads * head_dim, length)
    q, k, v = HeadwiseQkv(heads, axes=2)([stored]).t()[None].chunk(3, dim=-1)
    turn = rotation(cos, sin, positions)
    q, k = (rotary_embedding(x, turn, num_heads=heads, interleaved=False) for x in (q, k))
    q, k = (x[0].reshape(length, heads, head_dim) for x in (q, k))
    torch.testing.assert_close(torch.einsum("shd,thd->hst", q, k), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(v[0].t().reshape(heads, head_dim, length), official[2])


@given(tokens=st.integers(1, 6), experts=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_mixing_experts_equals_one_token_at_a_time(tokens: int, experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    per_token = min(2, experts)
    x, gate_up, down = torch.randn(tokens, 8), torch.randn(experts, 12, 8), torch.randn(experts, 8, 6)
    scores, bias = torch.rand(tokens, experts), torch.randn(experts)
    weights, chosen = route(scores, bias, per_token=per_token, normalize=True, scale=1.5)
    mixed = mix_experts(x, weights, chosen, gate_up, down)
    for row in range(tokens):
        best = (scores[row] + bias).argsort(descending=True)[:per_token]
        total = sum(scores[row, e] for e in best) + 1e-20
        expected = torch.zeros(8)
        for e in best:
            gate, up = (gate_up[e] @ x[row]).chunk(2)
            expected += 1.5 * scores[row, e] / total * (down[e] @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(mixed[row], expected, atol=1e-4, rtol=1e-4)
