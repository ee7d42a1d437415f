"""GLM-4-9B, -chat, -chat-1m and CodeGeeX4 in the layout of their remote code (``model_type: chatglm``).

``rope_ratio`` (500, 10000) multiplies the rotary base; builders that ignore it emit wrong rotations.

Source: THUDM/glm-4-9b-chat and glm-4-9b-chat-1m, ``modeling_chatglm.py`` and ``tokenization_chatglm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families import _chatglm_layout
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import WeightMap

VOCAB_KEY = _chatglm_layout.VOCAB_KEY
TOKENIZER = "tiktoken"
CHAT = "role_lines"
SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
"""In id order, following the ranks. Source: ``tokenizer_config.json``, ``added_tokens_decoder``."""
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where tiktoken splits text before merging. Source: ``tokenization_chatglm.py``."""


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``; see :func:`glm_export.families._chatglm_layout.read`."""
    return _chatglm_layout.read(values, family="glm4_remote", rotary_of="base", context=131072)


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    return _chatglm_layout.weight_map(config)


TINY = _chatglm_layout.tiny(
    "THUDM/glm-4-9b-chat", eos_token_id=[300, 301, 302], pad_token_id=300, seq_length=256,
    rope_ratio=500, layernorm_epsilon=1.5625e-07,
)  # fmt: skip
