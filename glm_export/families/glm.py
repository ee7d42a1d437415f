"""GLM-4-9B-hf, GLM-4-9B-chat-hf and GLM-Edge: the native ``GlmForCausalLM``.

GLM-Edge rotates whole heads (``partial_rotary_factor: 1.0``) and ties its head to the embedding.
The 2022 GLM says ``model_type: "glm"`` as well; its keys are others (``num_layers``, ``block_position_encoding``).

Source: ``modeling_glm.py`` of transformers; THUDM/glm-4-9b-chat-hf, THUDM/glm-edge-1.5b-chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families import _native_layout
from glm_export.families._keys import ConfigKeys
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import WeightMap

TOKENIZER = "tokenizer_json"
CHAT = "role_lines"


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``; see :func:`glm_export.families._native_layout.read`."""
    return _native_layout.read(ConfigKeys(values, family="glm"), sandwich_norms=False)


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    return _native_layout.weight_map(config)


TINY = _native_layout.tiny(
    "glm", "GlmForCausalLM", tie_word_embeddings=True, partial_rotary_factor=1.0, attention_bias=False
)
