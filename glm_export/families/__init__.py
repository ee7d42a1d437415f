"""One file per GLM generation: it reads its ``config.json``, names its weights, knows its tokenizer and prompt.

A family file offers::

    config(values) -> GlmConfig           # raises ConfigError on a key that could change numbers unnoticed
    weight_map(config) -> WeightMap       # official tensor names -> reference parameters
    TOKENIZER, CHAT                       # which reader and which prompt (``glm_export/tokenizers``)
    TINY                                  # a small config.json of this family, for tests

Adding a family is one such file, and a row in :data:`TELL_APART` or :data:`NATIVE` that tells it. Imports spec and
errors; knows neither ONNX nor torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from glm_export.errors import ConfigError, listed, shown
from glm_export.families._signs import NO_FILES, FolderFiles, tell_chatglm
from glm_export.families._vision import text_part

logger = logging.getLogger(__name__)
Values = Mapping[str, Any]

NATIVE = {
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}
"""``model_type`` of the classes inside transformers, which is the family's name, and the class."""
OTHER_GLMS = {
    "glm4_moe_lite": "GLM-4.7-Flash, with latent attention",
    "glm_moe_dsa": "GLM-5, with sparse attention",
    "glm5_next": "GLM-5",
    "glmasr": "a speech model",
}
"""GLMs of other architectures, by ``model_type``."""


def _is_chatglm_block(values: Values) -> bool:
    return values.get("model_type") == "chatglm" and "multi_query_attention" in values


def _is_chatglm_6b(values: Values) -> bool:
    return values.get("model_type") == "chatglm" and ("position_encoding_2d" in values or "inner_hidden_size" in values)


def _is_infilling(values: Values) -> bool:
    return values.get("model_type") == "glm" and "block_position_encoding" in values


TELL_APART: tuple[tuple[str, str, Callable[[Values], bool]], ...] = (
    ("glm_infilling", "model_type glm with block_position_encoding", _is_infilling),
    ("chatglm", "model_type chatglm with position_encoding_2d or inner_hidden_size", _is_chatglm_6b),
)
"""First row that holds names the family; native ones follow from ``model_type``, and ``_signs.py`` tells the rest."""


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


def identify(values: Values, files: FolderFiles = NO_FILES) -> tuple[str, str]:
    """Tell the family from what the files say, never from a folder's name.

    Args:
        values: the parsed ``config.json``.
        files: what else the folder holds.

    Returns:
        The family, and a warning where it was chosen among several with the same numbers.

    Raises:
        ConfigError: it is no known GLM, or what speaks disagrees.
    """
    for family, _, fits in TELL_APART:
        if fits(values):
            return family, ""
    if _is_chatglm_block(values):
        return tell_chatglm(values, files)
    native = _native(values)
    if native:
        return native, ""
    kind = values.get("model_type")
    if isinstance(kind, str) and kind in OTHER_GLMS:
        raise ConfigError(
            f"config.json is of {kind} ({OTHER_GLMS[kind]}), which is not supported yet; known families: "
            f"{', '.join(names())}"
        )
    named = values.get("architectures")
    told = listed(named) if isinstance(named, list) else shown(named)
    raise ConfigError(
        f"config.json is of no known GLM (model_type {shown(kind)}, architectures {told}); known families: "
        f"{', '.join(names())}"
    )


def _native(values: Values) -> str | None:
    """By ``model_type``, as transformers chooses its class; ``architectures`` may not say another."""
    listed = values.get("architectures") or []
    named = [family for family, architecture in NATIVE.items() if isinstance(listed, list) and architecture in listed]
    kind = values.get("model_type")
    if kind is None:
        return named[0] if named else None
    if named and named != [kind]:
        raise ConfigError(
            f"config.json says two things of its family: model_type {shown(kind)}, and architectures "
            f"{NATIVE[named[0]]!r}; mend the one that is wrong, or say --family"
        )
    return kind if isinstance(kind, str) and kind in NATIVE else None


def read_config(values: Values, family: str | None = None, files: FolderFiles = NO_FILES) -> Any:
    """``config.json`` as a :class:`~glm_export.spec.config.GlmConfig`; of a vision model its text part.

    Args:
        values: the parsed file.
        family: overrules :func:`identify`.
        files: what else the folder holds.

    Raises:
        ConfigError: unknown family, unknown key, or inconsistent sizes.
    """
    text = text_part(values)
    warning = ""
    if family is None:
        family, warning = identify(text.values, files)
    config = load(family).config(text.values)
    if warning:
        logger.warning("%s", warning)
    notes = tuple(note for note in (text.note, warning, *config.notes) if note)
    return replace(config, notes=notes, text_part_of=text.of)
