"""The verbs ``generate`` and ``chat``: text as it is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console

from glm_export.generation.sampling import Sampling
from glm_export.terminal.console import MESSAGES, flags

if TYPE_CHECKING:
    from glm_export.sessions.session import Session
    from glm_export.tokenizers.chat import Message


@click.command()
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to continue; several run as a batch.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@flags(Sampling)
@click.option("--stop", "stop_strings", multiple=True, help="Text that ends the answer.")
@click.option("--stream", is_flag=True, help="Print as it is written (one prompt).")
def generate(
    model: str,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    stop_strings: tuple[str, ...],
    stream: bool,
    **sampling: Any,
) -> None:
    """Continue a text with MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."""
    from glm_export import api

    if stream and len(prompts) > 1:
        raise click.UsageError("--stream shows one text as it grows; give one --prompt, or leave --stream out")
    chosen = Sampling(**sampling)
    with api.load_session(model) as session:
        if stream:
            write_stream(session, session.encode(prompts[0]), max_new_tokens, chosen, stop_strings)
            return
        answers = api.generate(
            session, list(prompts), max_new_tokens=max_new_tokens, sampling=chosen, stop_strings=stop_strings
        )
    for answer in answers:
        click.echo(answer.strip("\n"))


@click.command()
@click.argument("model")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="Of each reply.")
@click.option("--system", help="System message, where the model's prompt has one.")
@flags(Sampling)
def chat(model: str, max_new_tokens: int, system: str | None, **sampling: Any) -> None:
    """Talk with MODEL, an exported folder, an engine or a checkpoint. An empty line or end of input leaves."""
    from glm_export import api

    chosen = Sampling(**sampling)
    with api.load_session(model) as session:
        converse(session, MESSAGES, max_new_tokens=max_new_tokens, system=system, sampling=chosen)


def write_stream(
    session: Session, ids: list[int], max_new_tokens: int, sampling: Sampling, stop_strings: Sequence[str] = ()
) -> str:
    """Print text as it is written; returns all of it."""
    from glm_export import api
    from glm_export.generation.generate import generate_steps
    from glm_export.generation.stopping import TextStream

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
