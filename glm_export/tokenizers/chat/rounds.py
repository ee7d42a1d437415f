"""The prompts of the two oldest generations: rounds of questions and answers, as one text.

Sources: ``chat`` in ChatGLM-6B's ``modeling_chatglm.py``; ``build_prompt`` in ChatGLM2's ``tokenization_chatglm.py``.
"""

from __future__ import annotations

from typing import Any

from glm_export.errors import InputError
from glm_export.tokenizers.chat.messages import Tools, check_roles, checked, refuse_tools, text_of


def _numbered_rounds(messages: list[dict[str, Any]], *, model: str, first: int, gap: str) -> str:
    """``[Round i]``, 问 and 答, with ``gap`` after each."""
    check_roles(messages, ("user", "assistant"))
    expected = ["user", "assistant"] * (len(messages) // 2) + ["user"]
    if [message["role"] for message in messages] != expected:
        raise InputError(f"{model}'s prompt needs user and assistant in turns, the user first and last")
    text = ""
    for index, message in enumerate(messages):
        content = text_of(message.get("content"))
        if message["role"] == "user":
            text += f"[Round {index // 2 + first}]{gap}问：{content}{gap}答："
        else:
            text += f"{content}{gap}"
    return text


def rounds_prompt(messages: Any, tools: Tools | None = None, documents: Tools | None = None) -> str:
    """ChatGLM2: ``[Round 1]``, 问 and 答, counted from 1.

    Raises:
        InputError: user and assistant do not take turns, ending with the user, or there are tools.
    """
    messages = checked(messages)
    refuse_tools(messages, tools, documents, "ChatGLM2")
    return _numbered_rounds(messages, model="ChatGLM2", first=1, gap="\n\n")


def counted_rounds_prompt(messages: Any, tools: Tools | None = None, documents: Tools | None = None) -> str:
    """ChatGLM-6B: ``[Round 0]``, 问 and 答, counted from 0; a question without history is the prompt itself.

    Raises:
        InputError: user and assistant do not take turns, ending with the user, or there are tools.
    """
    messages = checked(messages)
    refuse_tools(messages, tools, documents, "ChatGLM-6B")
    text = _numbered_rounds(messages, model="ChatGLM-6B", first=0, gap="\n")
    return text_of(messages[0].get("content")) if len(messages) == 1 else text
