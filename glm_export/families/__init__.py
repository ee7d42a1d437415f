"""One file per GLM generation: it reads its ``config.json``, names its weights, knows its tokenizer and prompt.

A family file offers::

    config(values) -> GlmConfig           # raises ConfigError on a key that could change numbers unnoticed
    weight_map(config) -> WeightMap       # official tensor names -> reference parameters
    TOKENIZER, CHAT                       # which reader and which prompt (``glm_export/tokenizers``)
    TINY                                  # a small config.json of this family, for tests

Adding a family is one such file, and a row in :data:`TELL_APART` where ``config.json`` alone is ambiguous. Imports
spec and errors; knows neither ONNX nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from glm_export.errors import ConfigError

Values = Mapping[str, Any]

PUBLISHED_AS = {
    "chatglm2": {"chatglm2-6b", "chatglm2-6b-32k", "codegeex2-6b"},
    "chatglm3": {"chatglm3-6b", "chatglm3-6b-base", "chatglm3-6b-32k", "chatglm3-6b-128k"},
    "glm4_remote": {"glm-4-9b", "glm-4-9b-chat", "glm-4-9b-chat-1m", "codegeex4-all-9b", "LongWriter-glm4-9b"},
}
"""Names under which publishers released a family, as they wrote them into ``_name_or_path`` of config.json.

ChatGLM2 and ChatGLM3 have the same keys; only the published name and the meaning of ``rope_ratio`` differ.
"""
PUBLISHERS = ("THUDM", "zai-org", "ZhipuAI")


def _architecture(*names: str) -> Callable[[Values], bool]:
    return lambda values: bool(set(names) & set(values.get("architectures") or []))


def _published(family: str) -> Callable[[Values], bool]:
    labels = {f"{publisher}/{name}" for publisher in PUBLISHERS for name in PUBLISHED_AS[family]}
    return lambda values: _is_chatglm_block(values) and values.get("_name_or_path") in labels


def _is_chatglm_block(values: Values) -> bool:
    return values.get("model_type") == "chatglm" and "multi_query_attention" in values


def _is_fourth_chatglm(values: Values) -> bool:
    # The GLM-4 files are the only ones of this layout with several stop ids or a second name for the layer count.
    several_stops = isinstance(values.get("eos_token_id"), list)
    return _is_chatglm_block(values) and (several_stops or "num_hidden_layers" in values)


def _is_chatglm_6b(values: Values) -> bool:
    return values.get("model_type") == "chatglm" and ("position_encoding_2d" in values or "inner_hidden_size" in values)


def _is_infilling(values: Values) -> bool:
    return values.get("model_type") == "glm" and "block_position_encoding" in values


TELL_APART: tuple[tuple[str, str, Callable[[Values], bool]], ...] = (
    ("glm", "architectures has GlmForCausalLM", _architecture("GlmForCausalLM")),
    ("glm4", "architectures has Glm4ForCausalLM", _architecture("Glm4ForCausalLM")),
    ("glm4_moe", "architectures has Glm4MoeForCausalLM", _architecture("Glm4MoeForCausalLM")),
    ("glm_infilling", "model_type glm with block_position_encoding", _is_infilling),
    ("chatglm", "model_type chatglm with position_encoding_2d or inner_hidden_size", _is_chatglm_6b),
    ("chatglm2", "_name_or_path is a published ChatGLM2", _published("chatglm2")),
    ("chatglm3", "_name_or_path is a published ChatGLM3", _published("chatglm3")),
    ("glm4_remote", "_name_or_path is a published GLM-4", _published("glm4_remote")),
    ("glm4_remote", "chatglm with several stop ids or num_hidden_layers", _is_fourth_chatglm),
    (
        "glm",
        "model_type glm with num_key_value_heads",
        lambda v: v.get("model_type") == "glm" and "num_key_value_heads" in v,
    ),
    ("glm4", "model_type glm4", lambda v: v.get("model_type") == "glm4"),
    ("glm4_moe", "model_type glm4_moe", lambda v: v.get("model_type") == "glm4_moe"),
)
"""First row that holds names the family. ChatGLM2 or 3 without a published name falls to :func:`identify`."""


def names() -> list[str]:
    """Every family that has a file here."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The family's module.

    Raises:
        ConfigError: no such family; the message lists those there are.
    """
    if name not in names():
        raise ConfigError(f"family {name!r} is unknown; known families: {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def identify(values: Values) -> str:
    """Tell the family from the keys of ``config.json``, never from a folder's name.

    Raises:
        ConfigError: no row fits, or ChatGLM2 and 3 cannot be told apart although their numbers would differ.
    """
    for family, _, fits in TELL_APART:
        if fits(values):
            return family
    if _is_chatglm_block(values):
        if values.get("rope_ratio", 1) == 1:
            return "chatglm2"
        raise ConfigError(
            f"config.json has rope_ratio {values['rope_ratio']} but no published _name_or_path: ChatGLM2 divides "
            "positions by it, ChatGLM3 multiplies the base; say --family chatglm2 or --family chatglm3"
        )
    raise ConfigError(
        f"config.json is of no known GLM (model_type {values.get('model_type')!r}, architectures "
        f"{values.get('architectures')!r}); known families: {', '.join(names())}"
    )


def read_config(values: Values, family: str | None = None) -> Any:
    """``config.json`` as a :class:`~glm_export.spec.config.GlmConfig`.

    Args:
        values: the parsed file.
        family: overrules :func:`identify`.

    Raises:
        ConfigError: unknown family, unknown key, or inconsistent sizes.
    """
    return load(family or identify(values)).config(values)
