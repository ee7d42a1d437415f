"""ChatGLM3-6B, -base, -32k, -128k: the graph of ChatGLM2, another prompt, another meaning of ``rope_ratio``.

``rope_ratio`` (32k, 128k) multiplies the rotary base.

Source: THUDM/chatglm3-6b, ``modeling_chatglm.py`` and ``tokenization_chatglm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families import _chatglm_layout
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import WeightMap

VOCAB_KEY = _chatglm_layout.VOCAB_KEY
TOKENIZER = "sentencepiece"
CHAT = "role_parts"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *ROLES)
"""In id order, following the SentencePiece pieces. Source: ``tokenization_chatglm.py``."""
STOP_TOKENS = ("<|user|>", "<|observation|>")
"""End a reply beside the config's stop id. Source: ``modeling_chatglm.py`` ``chat``."""


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``; see :func:`glm_export.families._chatglm_layout.read`."""
    return _chatglm_layout.read(values, family="chatglm3", rotary_of="base", context=8192)


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    return _chatglm_layout.weight_map(config)


TINY = _chatglm_layout.tiny("THUDM/chatglm3-6b", eos_token_id=2, pad_token_id=0, seq_length=256)
