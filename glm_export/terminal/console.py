"""What the verbs share: where they print, models and options, progress, sizes. Built with click and rich."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from glm_export.deployment.request import BuildRequest
from glm_export.errors import InputError
from glm_export.progress import Advance
from glm_export.reports.records import size as size
from glm_export.spec.option import Option, flag, options_of
from glm_export.store.address import is_url, parse_address

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


class LocalPath(click.Path):
    """A path on this machine, which a URL is not: ``pathlib`` would make a folder ``s3:`` of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does.

        Raises:
            InputError: it is a URL.
        """
        if isinstance(value, str) and is_url(value):
            raise InputError(f"{parse_address(value).told} is a URL, and a path on this machine is expected here")
        return super().convert(value, param, ctx)


class Model(click.Path):
    """A model folder: what was typed, or a path of it where ``path_type`` says so; a URL stays as it is."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text of a URL, else as click's paths."""
        return value if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)

    def folder_of(self, value: Any) -> Any:
        """Where a URL's folder lies, in the type that a path would have; everything else as it is."""
        if isinstance(value, tuple):
            return tuple(map(self.folder_of, value))
        if not isinstance(value, str) or not is_url(value):
            return value
        from glm_export.artifacts.open import located

        with ProgressBars(MESSAGES) as bars:
            folder = located(value, bars)
        return folder if self.type is Path else str(folder)


RESULTS = PlainConsole(highlight=False)
MESSAGES = PlainConsole(stderr=True, highlight=False)
FOLDER = LocalPath(path_type=Path)
MODEL = Model(path_type=str)
MODEL_PATH = Model(path_type=Path)
TYPES: dict[str, Any] = {"str": click.STRING, "int": click.INT, "float": click.FLOAT, "Path": FOLDER}
"""Click's type for the first type a field's annotation names."""
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
            shape = _shape(field, option) | attributes
            shape["show_default"] = shape.get("default") is not None
            command = click.option(flag(record, name), name, help=text, **shape)(command)
        return command

    return decorated


def _shape(field: Field[Any], option: Option) -> dict[str, Any]:
    """Type and default as click takes them."""
    first = str(field.type).split(" | ")[0]
    if first == "bool":
        return {"is_flag": True}
    if first.startswith("tuple"):
        return {"multiple": True}
    shape: dict[str, Any] = {"type": TYPES.get(first)}
    if option.choices is not None:
        shape["type"] = click.Choice(option.choices())
    elif option.least is not None or option.most is not None:
        shape["type"] = click.IntRange(option.least, option.most)
    return shape | ({} if field.default is None else {"default": field.default})


def picked(record: type, options: dict[str, Any]) -> dict[str, Any]:
    """Take a record's fields out of what click parsed; those that were not asked for are missing."""
    return {name: options.pop(name) for name in options_of(record) if name in options}


out_option = click.option("--out", type=FOLDER, required=True, help="Folder to write.")
family_option = flags(BuildRequest, "family")


adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR[=WEIGHT]",
    help="A folder PEFT saved, merged into the checkpoint while it is read; may be given several times.",
)


def force_option(what: str) -> Callable[[Command], Command]:
    """``--force``, for a folder that holds something."""
    return click.option("--force", is_flag=True, help=f"Replace {what}.")


NO_CACHE = click.option(
    "--no-cache", is_flag=True, help="Keep no weights packed for this processor, and use none that are kept."
)


def json_option(what: str = "Print as JSON.") -> Callable[[Command], Command]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=what)


report_option = click.option(
    "--report",
    type=FOLDER,
    metavar="FILE.html",
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
        if source is None or source.name != "COMMANDLINE":
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


class ProgressBars:
    """Bars on a terminal, nothing where output is piped."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", style="dim"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def task(self, name: str, total: int) -> Advance:
        """Add a bar."""
        identifier = self._bars.add_task(name, total=total)
        return lambda count: self._bars.advance(identifier, count)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def fetch_models(context: click.Context) -> None:
    """Put folders in the place of URLs among the words of a verb."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if isinstance(parameter.type, Model) and context.params.get(name) is not None:
            context.params[name] = parameter.type.folder_of(context.params[name])
