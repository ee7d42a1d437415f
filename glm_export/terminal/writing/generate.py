"""The verb ``generate``: text as it is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from glm_export.errors import GlmExportError, InputError
from glm_export.generation.sampling import Sampling
from glm_export.terminal.console import (
    FOLDER,
    MODEL,
    NO_CACHE,
    SAMPLING,
    SPECULATE,
    flags,
    json_option,
    nobody_reads,
    show_json,
)

if TYPE_CHECKING:
    from glm_export.sessions.session import Session

NEWLINE = b"\n"
STANDARD_INPUT = Path("-")


@click.command()
@click.argument("model", type=MODEL)
@click.option("--prompt", "prompts", multiple=True, help="Text to continue; several run as a batch.")
@click.option("--prompt-file", "prompt_files", multiple=True, type=FOLDER, help="Text in a file; - is standard input.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@flags(Sampling, panel=SAMPLING)
@click.option("--stop", "stop_strings", multiple=True, help="Text that ends the answer.")
@click.option("--stream", is_flag=True, help="Print as it is written (one prompt).")
@SPECULATE
@NO_CACHE
@json_option("Print prompts and texts as JSON.")
def generate(
    model: str,
    prompts: tuple[str, ...],
    prompt_files: tuple[Path, ...],
    max_new_tokens: int,
    stop_strings: tuple[str, ...],
    stream: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a text with MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."""
    from glm_export import api

    if not prompts and not prompt_files:
        raise click.UsageError(
            "there is nothing to continue; give --prompt TEXT, --prompt-file FILE, or --prompt-file -"
        )
    if stream and len(prompts) + len(prompt_files) > 1:
        raise click.UsageError("--stream shows one text as it grows; give one --prompt, or leave --stream out")
    if stream and as_json:
        raise click.UsageError("--json prints texts that are whole, and --stream as they grow; give one of them")
    if prompt_files.count(STANDARD_INPUT) > 1:
        raise click.UsageError("standard input can be read once; give --prompt-file - once")
    speculate, no_cache = options.pop("speculate"), options.pop("no_cache")
    chosen, stop_strings = Sampling(**options), stopping_of(max_new_tokens, stop_strings)
    prompts = (*prompts, *map(read_prompt, prompt_files))
    with api.load_session(model, cache=not no_cache) as session:
        if stream:
            ids = session.encode(prompts[0])
            write_stream(session, ids, max_new_tokens, chosen, stop_strings, speculate=speculate)
            return
        answers = api.generate(
            session,
            list(prompts),
            max_new_tokens=max_new_tokens,
            sampling=chosen,
            stop_strings=stop_strings,
            speculate=speculate,
        )
    if as_json:
        texts = [{"prompt": prompt, "text": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        show_json({"model": model, "texts": texts})
        return
    for answer in answers:
        click.echo(answer.strip("\n"))


def stopping_of(max_new_tokens: int, stop_strings: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The stop strings, where a run can stop by them; seen before a model is loaded.

    Raises:
        InputError: one is empty, or nothing would be written.
    """
    # It knows tokenizers, which --help need not wait for.
    from glm_export.generation.stopping import Stopping

    return Stopping(max_new_tokens=max_new_tokens, stop_strings=stop_strings).stop_strings


def read_prompt(path: Path) -> str:
    """A file's text without the line end behind it, or that of standard input.

    Raises:
        InputError: it is missing, empty or not UTF-8.
    """
    if path == STANDARD_INPUT:
        name, data = "standard input", sys.stdin.buffer.read()
    elif path.is_file():
        name, data = str(path), path.read_bytes()
    else:
        raise InputError(f"--prompt-file {path} is no file; give a text file, or - for standard input")
    text = decoded(data, name).removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise InputError(f"{name} is empty; a prompt needs some text")
    return text


def decoded(data: bytes, name: str) -> str:
    """Bytes as text.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f" in line {data[: error.start].count(NEWLINE) + 1}" if NEWLINE in data.strip() else ""
        raise InputError(
            f"{name} should be UTF-8, found byte 0x{data[error.start]:02X}{place} ({error.reason}); "
            "save or type it in UTF-8"
        ) from error


def write_stream(
    session: Session,
    ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    stop_strings: Sequence[str] = (),
    *,
    interruptible: bool = False,
    speculate: bool = False,
) -> str:
    """Print text as it is written; returns all of it. It ends where nobody reads any more.

    ``interruptible``: Ctrl-C ends the text, and is no error.
    """
    from glm_export.generation.texts import stream

    written = ""
    pieces = stream(
        session, ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_strings=stop_strings, speculate=speculate
    )
    try:
        with closing(pieces):
            for piece in pieces:
                sys.stdout.write(piece.text if written else piece.text.lstrip("\n"))
                sys.stdout.flush()
                written += piece.text
                if nobody_reads():
                    break
    except GlmExportError:
        # What was written stays on a line of its own, above the error.
        sys.stdout.write("\n" if written else "")
        raise
    except KeyboardInterrupt:
        if not interruptible:
            raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return written
