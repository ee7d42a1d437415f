"""Grouped attention with a cache: the second pattern, said in two forms.

Shapes: B batch, S new tokens, P past tokens, T = P + S, N query heads, K key-value heads, D head size.
Query head ``j`` reads key-value head ``j // (N / K)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def causal_mask(attention_mask_BT: Tensor, query_len: int) -> Tensor:
    """Which key each query may see: itself and earlier ones, where they are not padding.

    A padding query sees everything, as in the official code: its row stays finite and cannot poison real rows with
    NaN, and a loss that starts at the last pad has the official value.

    Args:
        attention_mask_BT: integer ``[B, T]``, 1 = real token, over past and new tokens.
        query_len: S, the number of new tokens.

    Returns:
        bool ``[B, 1, S, T]``, True = attend; every row has a True.

    Source: ChatGLM2 ``modeling_chatglm.py`` ``get_masks``.
    """
    total = attention_mask_BT.shape[1]
    key_T = torch.arange(total, device=attention_mask_BT.device)
    query_S1 = key_T[total - query_len :].unsqueeze(-1)
    real_B1T = (attention_mask_BT != 0).unsqueeze(1)
    padding_B1S1 = ~real_B1T[:, :, total - query_len :].unsqueeze(-1)
    # & binds before |: causal and real, or a padding query, which sees all.
    return (key_T <= query_S1) & real_B1T.unsqueeze(1) | padding_B1S1


def prefix_mask(attention_mask_B1ST: Tensor) -> Tensor:
    """A mask given whole, as prefix families need it; every query sees itself as well.

    A token that matters sees itself in any case; a padding query that saw nothing would be NaN, and poison the rest.

    Args:
        attention_mask_B1ST: bool ``[B, 1, S, T]``, True = attend.

    Returns:
        The same shape.
    """
    query_len, total = attention_mask_B1ST.shape[2:]
    key_T = torch.arange(total, device=attention_mask_B1ST.device)
    return attention_mask_B1ST | (key_T == key_T[total - query_len :].unsqueeze(-1))


def grouped_attention(
    q_BSC: Tensor,
    k_BSC: Tensor,
    v_BSC: Tensor,
    mask_B1ST: Tensor,
    past_key_BKPD: Tensor,
    past_value_BKPD: Tensor,
    *,
    num_heads: int,
    kv_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention of new queries over past and new keys, scale ``D ** -0.5``.

    Args:
        q_BSC: ``[B, S, N * D]``.
        k_BSC: ``[B, S, K * D]``.
        v_BSC: ``[B, S, K * D]``.
        mask_B1ST: bool ``[B, 1, S, T]``, True = attend; every row has a True.
        past_key_BKPD: ``[B, K, P, D]``, P may be 0.
        past_value_BKPD: ``[B, K, P, D]``.
        num_heads: N.
        kv_heads: K, a divisor of N.

    Returns:
        output ``[B, S, N * D]``, present key and present value ``[B, K, T, D]``.

    While exporting this is one ONNX ``Attention`` (opset 23, never ``is_causal``: its alignment
    differs between opset 23, 25 and TensorRT); otherwise differentiable PyTorch.
    """
    if torch.compiler.is_exporting():
        output, key, value, _ = torch.onnx.ops.attention(
            q_BSC, k_BSC, v_BSC, mask_B1ST, past_key_BKPD, past_value_BKPD,
            q_num_heads=num_heads, kv_num_heads=kv_heads,
        )  # fmt: skip
        return output, key, value
    q_BNSD = _split_heads(q_BSC, num_heads)
    key_BKTD = torch.cat((past_key_BKPD, _split_heads(k_BSC, kv_heads)), dim=2)
    value_BKTD = torch.cat((past_value_BKPD, _split_heads(v_BSC, kv_heads)), dim=2)
    # enable_gqa shares head j // (N / K), as ONNX's Attention does; other orders exist (planted in tests as a defect).
    output_BNSD = functional.scaled_dot_product_attention(
        q_BNSD, key_BKTD, value_BKTD, attn_mask=mask_B1ST, enable_gqa=True
    )
    return output_BNSD.transpose(1, 2).flatten(-2), key_BKTD, value_BKTD


def _split_heads(x_BSC: Tensor, heads: int) -> Tensor:
    """``[B, S, heads * D] -> [B, heads, S, D]``."""
    return x_BSC.reshape(*x_BSC.shape[:2], heads, -1).transpose(1, 2)
