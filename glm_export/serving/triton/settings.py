"""How the engine of a Triton model is started: ``parameters`` of its ``config.pbtxt``, which an editor may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glm_export.errors import InputError, shown
from glm_export.model_folder import parse_json
from glm_export.serving.options import ServeOptions
from glm_export.spec.option import options_of

SETTINGS = (
    "max_batch",
    "max_context",
    "chunk_tokens",
    "exact",
    "speculate",
    "queue",
    "wait_seconds",
    "deadline",
    "drain_seconds",
    "prefix_megabytes",
    "allow_special_tokens",
    "threads",
    "no_cache",
)
"""Those of the server's options that are the engine's; the others are Triton's own business."""


def to_parameters(options: ServeOptions) -> dict[str, str]:
    """Options as texts, by name; what is left open is left out."""
    values = {name: getattr(options, name) for name in SETTINGS}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def from_parameters(parameters: Mapping[str, str]) -> ServeOptions:
    """Inverse of :func:`to_parameters`; names in capitals are the Python backend's own, and left alone.

    Raises:
        InputError: a name is none of these, or a value none it can have.
    """
    own = {name: text for name, text in parameters.items() if not name.isupper()}
    unknown = sorted(own.keys() - set(SETTINGS))
    if unknown:
        raise InputError(
            f"config.pbtxt has no parameter {', '.join(map(shown, unknown))}; known: {', '.join(SETTINGS)}"
        )
    return ServeOptions(**{name: _value(name, text) for name, text in own.items()})


def _value(name: str, text: str) -> Any:
    field, option = options_of(ServeOptions)[name]
    kind = str(field.type).split(" | ")[0]
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if kind == "float" and type(value) is int:
        value = float(value)
    least, most = option.least, option.most
    sound = type(value).__name__ == kind
    if not sound or (least is not None and value < least) or (most is not None and value > most) or value < 0:
        raise InputError(f"parameter {name} of config.pbtxt cannot be {shown(text)}: {option.help}")
    return value
