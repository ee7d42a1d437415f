"""The verb ``chat``: questions as they are typed, commands among them, and replies as they are written."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.errors import GlmExportError, InputError
from glm_export.generation.sampling import Sampling
from glm_export.terminal.console import ERRORS, MODEL, NO_CACHE, SAMPLING, SPECULATE, flags, nobody_reads

if TYPE_CHECKING:
    from glm_export.generation.conversation import Conversation
    from glm_export.sessions.session import Session

FENCE = b'"""'
"""Stands before and behind a question of several lines."""
COMMANDS = {
    "/help": "these lines",
    "/clear": "forget what was said; the system message stays",
    "/system TEXT": "another system message from now on; without a text: show it",
}


@click.command()
@click.argument("model", type=MODEL)
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="Of each reply.")
@click.option("--system", help="System message, where the model's prompt has one.")
@flags(Sampling, panel=SAMPLING)
@SPECULATE
@NO_CACHE
def chat(model: str, max_new_tokens: int, system: str | None, speculate: bool, no_cache: bool, **sampling: Any) -> None:
    """Talk with MODEL, an exported folder, an engine or a checkpoint. An empty line or end of input leaves.

    /help lists commands, /clear forgets what was said, /system TEXT sets the system message. The arrow keys bring back
    what was typed. A question of several lines stands between two lines of \"\"\". Ctrl-C ends the reply that is being
    written; a second one, or one where a question is due, leaves. Where the conversation outgrows the context, its
    oldest rounds leave and the system message stays.
    """
    from glm_export import api
    from glm_export.terminal.writing.generate import stopping_of

    chosen = Sampling(**sampling)
    stopping_of(max_new_tokens)
    if system is not None:
        from glm_export.tokenizers.valid_text import require_valid_text

        require_valid_text(system)
    with api.load_session(model, cache=not no_cache) as session:
        failed = converse(
            session, ERRORS, max_new_tokens=max_new_tokens, system=system, sampling=chosen, speculate=speculate
        )
    # Who types has seen it; a script has to be told.
    if failed is not None and not ERRORS.is_terminal:
        sys.exit(failed.exit_code)


def converse(
    session: Session,
    console: Console,
    *,
    max_new_tokens: int,
    system: str | None,
    sampling: Sampling,
    speculate: bool = False,
) -> GlmExportError | None:
    """Read questions, stream the replies; replies go to stdout, prompts and errors to ``console``.

    A question that cannot be answered is said to be so, is forgotten, and the conversation goes on. A reply that Ctrl-C
    ended stays as far as it was written; anywhere else Ctrl-C leaves.

    Returns:
        The last such error; None where every question was answered.
    """
    from glm_export.generation.conversation import Conversation
    from glm_export.terminal.writing.generate import write_stream

    conversation, failed = Conversation(session, system=system, max_new_tokens=max_new_tokens), None
    told = False
    while True:
        try:
            question = read_question(console)
            if question is None:
                return failed
            if command(conversation, question, console):
                continue
            ids = conversation.ask(question)
            if conversation.rounds_left_out and not told:
                told = True
                console.print("[dim]the conversation outgrows the model's context: its oldest rounds leave[/]")
            reply = write_stream(session, ids, max_new_tokens, sampling, interruptible=True, speculate=speculate)
            if nobody_reads():
                return failed
            if reply.strip():
                conversation.answered(question, reply.strip())
        except KeyboardInterrupt:
            console.print()
            return failed
        except GlmExportError as error:
            failed = error
            console.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)


def command(conversation: Conversation, line: str, console: Console) -> bool:
    """Do what a line asks for that is no question; says whether it was none.

    Raises:
        InputError: the model's prompt has no system message, or a word alone begins with ``/`` and is no command.
    """
    word, _, rest = line.partition(" ")
    if word == "/clear" and not rest:
        conversation.clear()
        console.print("[dim]what was said is forgotten[/]")
    elif word == "/system":
        if rest.strip():
            conversation.set_system(rest.strip())
        said = conversation.system
        console.print(f"[dim]system message: {escape(said) if said else 'none'}[/]", soft_wrap=True)
    elif word == "/help" and not rest:
        for name, what in COMMANDS.items():
            console.print(f"  {name:14}[dim]{what}[/]", soft_wrap=True)
        console.print(f"  {FENCE.decode():14}[dim]before and behind a question of several lines[/]", soft_wrap=True)
        console.print(
            f"  {'Ctrl-C':14}[dim]ends a reply; where a question is due, leaves, as an empty line does[/]",
            soft_wrap=True,
        )
    elif word.startswith("/") and word[1:].isalpha() and not rest:
        raise InputError(f"there is no command {word}; known: {', '.join(COMMANDS)}")
    else:
        return False
    return True


def read_question(console: Console) -> str | None:
    """A line, or lines between two of :data:`FENCE`; None where an empty line or the end of input leaves.

    Raises:
        InputError: what was read is not UTF-8; the next line is still there to be read.
    """
    from glm_export.terminal.writing.generate import decoded

    remember_lines()
    # Bytes: a text stream loses what it has read ahead when it meets one that is none of its encoding.
    while True:
        line = _line(console, "›")
        if not line.strip().startswith(FENCE):
            return decoded(line, "the line").strip() or None
        fenced = line.strip().removeprefix(FENCE)
        while line and not fenced.rstrip().endswith(FENCE):
            line = _line(console, "…")
            fenced += (b"\n" if fenced else b"") + line.rstrip(b"\r\n")
        question = decoded(fenced, "the text").rstrip().removesuffix(FENCE.decode()).strip("\n")
        if question.strip() or not line:
            return (question.strip() and question) or None


def remember_lines() -> None:
    """Let the arrow keys bring back and change what was typed, where somebody types; nothing is kept on disk."""
    if _is_typed():
        # Importing it is what makes ``input`` use it; some systems have none.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")


def _is_typed() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _line(console: Console, mark: str) -> bytes:
    if _is_typed():
        sys.stdout.flush()
        try:
            return f"{input(f'{mark} ')}\n".encode("utf-8", "surrogateescape")
        except EOFError:
            return b""
        except UnicodeDecodeError as error:
            return bytes(error.object)
    if console.is_terminal:
        console.print(f"[bold cyan]{mark}[/] ", end="")
    return sys.stdin.buffer.readline()
