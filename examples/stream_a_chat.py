"""A conversation whose replies appear as they are written; what a character lacks is held back until it is whole.

python examples/stream_a_chat.py [MODEL]
"""

from __future__ import annotations

import sys

from glm_export import load_session, stream
from glm_export.tokenizers.chat import Message

QUESTIONS = ("千山鸟飞绝，万径人踪灭。", "白日依山尽，黄河入海流。")


def main(model: str = "demo") -> None:
    messages: list[Message] = []
    with load_session(model) as session:
        for question in QUESTIONS:
            messages = [Message(role="user", content=question)]
            print(f"› {question}")
            reply = ""
            for piece in stream(session, session.tokenizer.chat(messages), max_new_tokens=64):
                print(piece.text, end="", flush=True)
                reply += piece.text
            print(f"  ({piece.finish_reason})")
            messages.append(Message(role="assistant", content=reply))


if __name__ == "__main__":
    main(*sys.argv[1:])
