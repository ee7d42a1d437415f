"""Text that can be encoded at all: Unicode without lone surrogates."""

from __future__ import annotations

from glm_export.errors import InputError


def require_valid_text(text: str) -> str:
    """The text, if it is Unicode; every reader asks before its library does.

    A lone surrogate is half of a UTF-16 pair, or a byte that was no UTF-8 where the text came from.

    Raises:
        InputError: naming the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text should be Unicode, found a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, as bytes that are no UTF-8 leave it; write the text in UTF-8"
        ) from None
    return text
