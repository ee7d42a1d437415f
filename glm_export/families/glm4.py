"""GLM-4-0414 and GLM-Z1: the native ``Glm4ForCausalLM``, with norms before and after attention and MLP.

Source: ``modeling_glm4.py`` of transformers; THUDM/GLM-4-9B-0414.
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
    return _native_layout.read(ConfigKeys(values, family="glm4"), sandwich_norms=True)


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    return _native_layout.weight_map(config)


TINY = _native_layout.tiny("glm4", "Glm4ForCausalLM")
