"""The verbs ``generate`` and ``chat``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from glm_export import api
from glm_export.generation.generate import generate_steps
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import TextStream
from glm_export.sessions.session import Session
from glm_export.tokenizers.chat import Message

if TYPE_CHECKING:  # these need torch; showing what they made does not
    pass


def write_stream(
    session: Session, ids: list[int], max_new_tokens: int, sampling: Sampling, stop_strings: Sequence[str] = ()
) -> str:
    """Print text as it is written; returns all of it."""
    decode = session.tokenizer.decode
    stream, written = TextStream(decode, stop_strings), ""
    steps = generate_steps(
        session,
        [ids],
        sampling=sampling,
        decode=decode,
        stopping=api.stopping_for(session, max_new_tokens, stop_strings),
    )
    for (row,) in steps:
        new = stream.text(row.ids, finished=bool(row.finish_reason))
        sys.stdout.write(new if written else new.lstrip("\n"))
        sys.stdout.flush()
        written += new
    sys.stdout.write("\n")
    return written


def converse(
    session: Session, console: Console, *, max_new_tokens: int, system: str | None, sampling: Sampling
) -> None:
    """Read questions line by line, stream the replies; replies go to stdout, prompts to ``console``."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    while True:
        if console.is_terminal:
            console.print("[bold cyan]›[/] ", end="")
        question = sys.stdin.readline().strip()
        if not question:
            return
        messages.append({"role": "user", "content": question})
        reply = write_stream(session, session.tokenizer.chat(messages), max_new_tokens, sampling)
        messages.append({"role": "assistant", "content": reply.strip()})
