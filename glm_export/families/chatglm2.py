"""ChatGLM2-6B, ChatGLM2-6B-32k, CodeGeeX2-6B.

``rope_ratio`` (32k) divides positions: linear interpolation. CodeGeeX2 has the same keys and tensors.

Source: THUDM/chatglm2-6b and chatglm2-6b-32k, ``modeling_chatglm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families import _chatglm_layout
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import WeightMap

VOCAB_KEY = _chatglm_layout.VOCAB_KEY
TOKENIZER = "sentencepiece"
CHAT = "rounds"
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""In id order, following the SentencePiece pieces. Source: ``tokenization_chatglm.py``."""


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``; see :func:`glm_export.families._chatglm_layout.read`."""
    return _chatglm_layout.read(values, family="chatglm2", rotary_of="positions", context=32768)


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    return _chatglm_layout.weight_map(config)


TINY = _chatglm_layout.tiny("THUDM/chatglm2-6b", eos_token_id=2, pad_token_id=0, seq_length=256)
