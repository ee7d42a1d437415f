"""The prompts built in, as Jinja: for folders without a template, and for other readers of an exported folder.

Sources: ``chat_template`` of THUDM/glm-4-9b-chat (``role_lines``), THUDM/GLM-4-9B-0414 (``system_first``) and
zai-org/GLM-4.5 (``thinking``); of the older generations the code they were published with, see ``rounds.py`` and
``role_parts.py``. Beyond them: calls and answers in OpenAI's words where the publisher's template has only its own,
content in parts, and no content beside calls.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

GUARD = "\ufdd0"
"""Stands before a special token's name where names are read out of texts, and the family's own reader does not.

A noncharacter: Unicode keeps it for internal use, out of text that is exchanged.
"""
NAME = "guarded_text"
WRAPPED = f"{{% set {NAME} %}}"
"""What a template of a folder begins with where it was made by :func:`guarded`."""
PROMPTS = Path(__file__).parent / "prompts"
BY_PROMPT = {"rounds": "rounds", "role_parts": "role_parts", "role_lines": "role_lines"}
BY_FAMILY = {"glm4": "system_first", "glm4_moe": "thinking"}
"""Families of the same roles whose tools, calls and thoughts are written otherwise."""


@cache
def built_in(family: str, prompt: str) -> str:
    """The template of a family's prompt.

    Args:
        family: its name.
        prompt: what its file calls ``CHAT``.
    """
    shared = {f"{{{name.upper()}}}": _read(name) for name in ("text", "function")}
    template = _read(BY_FAMILY.get(family) or BY_PROMPT[prompt])
    for place, source in shared.items():
        template = template.replace(place, source)
    return template.replace("{GUARD}", GUARD)


def _read(name: str) -> str:
    return (PROMPTS / f"{name}.jinja").read_text(encoding="utf-8")


def guarded(template: str, names: tuple[str, ...]) -> str | None:
    """A template whose text has :data:`GUARD` before every name, wherever it comes from; None where that is not exact.

    Args:
        template: Jinja.
        names: of special tokens.
    """
    if any(one != other and one in other for one in names for other in names):
        return None
    # What Jinja takes off the end of a template stays off inside a block.
    for end in ("\r\n", "\n", "\r"):
        if template.endswith(end):
            template = template.removesuffix(end)
            break
    # Nor are blanks between the start of the text and a block. What is empty keeps other line ends and blanks from
    # meeting the blocks put around, which would take them.
    template = re.sub(r"\A[^\S\r\n]+(?=\{[%#](?!\+))", "", template)
    text = f"{WRAPPED}{{{{ '' }}}}{template}{{{{ '' }}}}{{% endset %}}"
    # onnxruntime-genai's Jinja can replace in no other way.
    steps = [("", GUARD), *((f"{GUARD}{name}", name) for name in names)]
    found = NAME
    for new, old in steps:
        found = f"({found}.split('{old}') | join('{new}'))"
    return f"{text}{{{{ {found} }}}}"
