"""What the verbs share: where they print, models and options, progress, sizes. Built with click and rich."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from glm_export.deployment.request import BuildRequest
from glm_export.reports.records import size as size
from glm_export.spec.option import Option, flag, options_of
from glm_export.terminal.frame.paths import LocalPath, Model

if TYPE_CHECKING:
    from glm_export.reports.files import AskedReport

ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal acts on, all but line breaks and tabs, or that turn the direction of writing."""


class PlainConsole(Console):
    """Shows what a terminal would act on as its escape: names and texts come from files."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Markup to text."""
        plain = ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
        return super().render_str(plain, **options)


RESULTS = PlainConsole(highlight=False)
MESSAGES = PlainConsole(stderr=True, highlight=False)
"""Progress and remarks, which ``-q`` leaves out."""
ERRORS = PlainConsole(stderr=True, highlight=False)
"""What is said in any case."""
FOLDER = LocalPath(path_type=Path)
MODEL = Model(path_type=str)
MODEL_PATH = Model(path_type=Path)
TYPES: dict[str, Any] = {"str": click.STRING, "int": click.INT, "float": click.FLOAT, "Path": FOLDER}
"""Click's type for the first type a field's annotation names."""
GIVEN = ("COMMANDLINE", "DEFAULT_MAP")
"""Where click has a value from that somebody gave: typed, or in a file of options."""
Command = TypeVar("Command", bound=Callable[..., Any])


class Unread(io.FileIO):
    """A standard stream whose reader may leave, as ``head`` does: from then on what is written is dropped.

    A verb ends as it would have ended, with the exit code that says what came of it.
    """

    dropped = False

    def write(self, data: Any, /) -> int:
        """Write, or drop."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.dropped = True
            return memoryview(data).nbytes


def until_unread(stream: TextIO, *, errors: str) -> TextIO:
    """A standard stream to be written to as long as somebody reads it; others than files stay as they are.

    Args:
        stream: standard output or error.
        errors: what becomes of characters its encoding has not, as ``codecs`` calls it.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Unread(stream.fileno(), "w", closefd=False)), encoding=stream.encoding, errors=errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def nobody_reads() -> bool:
    """Whether the reader of standard output has left."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Unread) and raw.dropped


def flags(
    record: type, *names: str, before: str = "", after: str = "", **attributes: Any
) -> Callable[[Command], Command]:
    """Options of the command line for fields of a record, with the fields' texts, choices and defaults.

    Args:
        record: has the fields.
        names: which; without any all that are described, in their order.
        before: goes before each text.
        after: goes behind it.
        **attributes: of ``click.option``, in place of what a field says.
    """
    described = options_of(record)

    def decorated(command: Command) -> Command:
        for name in reversed(names or tuple(described)):
            field, option = described[name]
            text = before + (option.help[0].lower() + option.help[1:] if before else option.help) + after
            text += _known(option)
            shape = _shape(field, option) | attributes
            shape["show_default"] = shape.get("default") is not None
            command = click.option(flag(record, name), name, help=text, **shape)(command)
        return command

    return decorated


def _known(option: Option) -> str:
    """Choices and limits as part of a text: in a column of their own they would be cut into pieces."""
    if option.choices is not None:
        return f" One of {', '.join(option.choices())}."
    if option.least is not None:
        return f" At least {option.least}." if option.most is None else f" {option.least} to {option.most}."
    return "" if option.most is None else f" At most {option.most}."


def _shape(field: Field[Any], option: Option) -> dict[str, Any]:
    """Type and default as click takes them."""
    first = str(field.type).split(" | ")[0]
    if first == "bool":
        return {"is_flag": True}
    if first.startswith("tuple"):
        return {"multiple": True}
    shape: dict[str, Any] = {"type": TYPES.get(first)}
    if option.choices is not None:
        shape |= {"type": click.Choice(option.choices()), "metavar": "NAME"}
    elif option.least is not None or option.most is not None:
        shape |= {"type": click.IntRange(option.least, option.most), "metavar": "INTEGER"}
    return shape | ({} if field.default is None else {"default": field.default})


def picked(record: type, options: dict[str, Any]) -> dict[str, Any]:
    """Take a record's fields out of what click parsed; those that were not asked for are missing."""
    return {name: options.pop(name) for name in options_of(record) if name in options}


CHECKPOINT_PANEL, QUANTIZATION, OUTPUT = "Checkpoint", "Quantization", "Output"
SAMPLING, CLUSTER = "Sampling", "Ray cluster"
"""Panels of ``--help`` that several verbs have; a verb's own options stand above them."""

out_option = click.option("--out", type=FOLDER, required=True, help="Folder to write.")
family_option = flags(BuildRequest, "family", panel=CHECKPOINT_PANEL)


adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR",
    panel=CHECKPOINT_PANEL,
    help="A folder PEFT saved, merged into the checkpoint while it is read; DIR=WEIGHT scales it. May be given several "
    "times.",
)


def force_option(what: str) -> Callable[[Command], Command]:
    """``--force``, for a folder that holds something."""
    return click.option("--force", is_flag=True, help=f"Replace {what}.", panel=OUTPUT)


NO_CACHE = click.option(
    "--no-cache", is_flag=True, help="Keep no weights packed for this processor, and use none that are kept."
)


SPECULATE = click.option(
    "--speculate",
    is_flag=True,
    help="Guess what the text repeats, and read several tokens at once; the same text, but with int4-int8-prompt.",
)


def json_option(what: str = "Print as JSON.") -> Callable[[Command], Command]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=what, panel=OUTPUT)


def show_json(facts: Any) -> None:
    """Print findings as the one JSON value of a verb; what is said of them besides goes to standard error."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=_jsonable))


def _jsonable(value: Any) -> Any:
    """What JSON has no form for: paths as text, sets in order."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


report_option = click.option(
    "--report",
    type=FOLDER,
    metavar="FILE.html",
    panel=OUTPUT,
    help="Write the findings as a page as well, and its numbers beside it as FILE.json; needs the extra `report`.",
)


def show_written(console: Console, asked: AskedReport | None) -> None:
    """Where a report is, if one was asked for."""
    if asked is not None:
        files = asked.files
        written = size(files.page.stat().st_size + files.data.stat().st_size)
        console.print(f"[green]wrote[/] {escape(f'{files.page}, {files.data.name}')} ({written})", soft_wrap=True)


def typed_line() -> str:
    """The line that repeats a verb, as a shell takes it: the options that were given, and no others."""
    context = click.get_current_context(silent=False)
    assert context is not None
    words = ["glm-export", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        source = context.get_parameter_source(str(parameter.name))
        # What stood in a file of options is repeated without it.
        if source is None or source.name not in GIVEN or not parameter.expose_value:
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(parameter.opts[0])
        else:
            words += [
                word
                for one in (value if isinstance(value, tuple) else [value])
                for word in (parameter.opts[0], str(one))
            ]
    return shlex.join(words)


def fetch_models(context: click.Context) -> None:
    """Put folders in the place of URLs among the words of a verb."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if isinstance(parameter.type, Model) and context.params.get(name) is not None:
            context.params[name] = parameter.type.folder_of(context.params[name])
