"""What people write never becomes a token that only templates write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from glm_export.tokenizers import Tokenizer

APART = "\u200b"
"""Between the first two characters of a name: it reads the same, and is a name no more."""


def names_of(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Names of special tokens, the longest first; None where there are none."""
    names = sorted(tokenizer.special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def literal_text(text: str, names: re.Pattern[str] | None) -> str:
    """Text whose names of special tokens are text."""
    return text if names is None else names.sub(lambda found: f"{found[0][:1]}{APART}{found[0][1:]}", text)


def literal(messages: Iterable[Any], names: re.Pattern[str] | None) -> list[Any]:
    """Messages whose contents are text. What is no message stays as it is, to be refused by who knows them."""
    return [_message(one, names) if isinstance(one, Mapping) else one for one in messages]


def _message(message: Mapping[str, Any], names: re.Pattern[str] | None) -> dict[str, Any]:
    thought = message.get("reasoning_content")
    if isinstance(thought, str):
        message = {**message, "reasoning_content": literal_text(thought, names)}
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": literal_text(content, names)}
    if isinstance(content, list):
        return {**message, "content": [_part(part, names) for part in content]}
    return dict(message)


def _part(part: Any, names: re.Pattern[str] | None) -> Any:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {**part, "text": literal_text(part["text"], names)}
    return part
