"""Vision models: which of them have a text part that is a GLM of its own, and what the others are.

Source: ``modular_glm4v.py``, ``modular_glm46v.py``, ``modular_glm4v_moe.py``, ``modular_glm_ocr.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm_export.errors import ConfigError, shown

TEXT_PARTS = {
    "glm4v": ("glm4", {"attention_bias": True}),
    "glm46v": ("glm4", {"attention_bias": True}),
    "glm_ocr": ("glm4", {"attention_bias": False}),
    "glm4v_moe": ("glm4_moe", {"attention_bias": True}),
}
"""``model_type`` of a vision model -> that of its text part, and what its class takes for keys that are absent."""
LANGUAGE_MODEL = (("model.language_model.", "model."), ("language_model.", ""))
"""Where a vision model keeps its text part, and the names that has alone."""
VISION_TOWER = {
    "model.visual.*": "the vision tower, which the text part does without",
    "visual.*": "the vision tower, which the text part does without",
}
VISUAL = {"visualglm": "VisualGLM", "cogvlm": "CogVLM", "cogvlm2": "CogVLM2", "cogagent": "CogAgent"}
WHOLE_ONLY = "its text part is not published as a model of its own, so nothing of it can be exported"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """``values``: the text model's config. ``of``: the ``model_type`` of the vision model; empty where it is none."""

    values: Mapping[str, Any]
    of: str = ""
    note: str = ""


def text_part(values: Mapping[str, Any]) -> TextPart:
    """The text part of a vision model's config; any other config as it is.

    Raises:
        ConfigError: it is a vision model whose text part cannot be exported.
    """
    kind = str(values.get("model_type"))
    if kind not in TEXT_PARTS:
        _refuse_vision(values, kind)
        return TextPart(values=values)
    inner = values.get("text_config")
    if not isinstance(inner, Mapping):
        raise ConfigError(f"config.json of {kind} should hold a text_config, found {shown(inner)}; download it again")
    family, defaults = TEXT_PARTS[kind]
    outer = {key: values[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in values}
    named = {"model_type": family, "architectures": []}
    return TextPart(
        values=defaults | outer | {key: value for key, value in inner.items() if value is not None} | named,
        of=kind,
        note=f"{kind} is a vision model: its text part is read, the vision tower is left out",
    )


def _refuse_vision(values: Mapping[str, Any], kind: str) -> None:
    architectures = values.get("architectures")
    named = " ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    told = VISUAL.get(kind)
    if kind == "chatglm" and ("image_length" in values or "WithImage" in named):
        told = "VisualGLM"
    elif "vision_config" in values:
        told = told or {"chatglm": "GLM-4V", "glm": "GLM-Edge-V"}.get(kind, f"a vision model ({kind})")
    elif "cogvlm" in named.lower():
        told = told or "CogVLM"
    if told:
        readable = ", ".join(TEXT_PARTS)
        raise ConfigError(f"config.json is of a vision model, {told}: {WHOLE_ONLY}. Those with one: {readable}")
