"""What people write never becomes a token that only templates write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glm_export.tokenizers import Tokenizer

APART = "\u200b"
"""Between the first two characters of a name: it reads the same, and is a name no more."""


def names_of(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Names of special tokens, the longest first; None where there are none."""
    names = sorted(tokenizer.special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def literal(value: Any, names: re.Pattern[str] | None) -> Any:
    """A value of JSON in which every text, of whatever key, says no name of a special token; keys are texts as well."""
    if names is None:
        return value
    if isinstance(value, str):
        return names.sub(lambda found: f"{found[0][:1]}{APART}{found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {literal(key, names): literal(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner, names) for inner in value]
    return value
