"""The prompts of each generation, as text.

Sources: ``chat`` in ChatGLM-6B's ``modeling_chatglm.py``; ``build_prompt`` in ChatGLM2's ``tokenization_chatglm.py``;
``build_chat_input`` in ChatGLM3's; the ``chat_template`` of THUDM/glm-4-9b-chat.
"""

from __future__ import annotations

from typing import TypedDict

from glm_export.errors import InputError


class Message(TypedDict):
    """One turn: ``role`` is system, user, assistant or observation."""

    role: str
    content: str


ROLES = ("system", "user", "assistant", "observation")


def check_roles(messages: list[Message], known: tuple[str, ...] = ROLES) -> None:
    """Refuse an empty conversation and unknown roles.

    Raises:
        InputError: naming the role.
    """
    if not messages:
        raise InputError("a conversation needs at least one message")
    for message in messages:
        if message["role"] not in known:
            raise InputError(f"role {message['role']!r} is not in this model's prompt; it knows {', '.join(known)}")


def _numbered_rounds(messages: list[Message], *, model: str, first: int, gap: str) -> str:
    """``[Round i]``, 问 and 答, with ``gap`` after each."""
    check_roles(messages, ("user", "assistant"))
    expected = ["user", "assistant"] * (len(messages) // 2) + ["user"]
    if [message["role"] for message in messages] != expected:
        raise InputError(f"{model}'s prompt needs user and assistant in turns, the user first and last")
    text = ""
    for index, message in enumerate(messages):
        if message["role"] == "user":
            text += f"[Round {index // 2 + first}]{gap}问：{message['content']}{gap}答："
        else:
            text += f"{message['content']}{gap}"
    return text


def rounds_prompt(messages: list[Message]) -> str:
    """ChatGLM2: ``[Round 1]``, 问 and 答, counted from 1.

    Raises:
        InputError: user and assistant do not take turns, ending with the user.
    """
    return _numbered_rounds(messages, model="ChatGLM2", first=1, gap="\n\n")


def counted_rounds_prompt(messages: list[Message]) -> str:
    """ChatGLM-6B: ``[Round 0]``, 问 and 答, counted from 0; a question without history is the prompt itself.

    Raises:
        InputError: user and assistant do not take turns, ending with the user.
    """
    text = _numbered_rounds(messages, model="ChatGLM-6B", first=0, gap="\n")
    return messages[0]["content"] if len(messages) == 1 else text


def role_lines_prompt(messages: list[Message]) -> str:
    """GLM-4: ``<|role|>``, a newline, the content; without the ``[gMASK]<sop>`` prefix."""
    check_roles(messages)
    turns = "".join(f"<|{message['role']}|>\n{message['content']}" for message in messages)
    return f"{turns}<|assistant|>"
