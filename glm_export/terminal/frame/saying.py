"""How much is said besides results: progress and remarks, and what the library logs; the options that say so."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import rich_click as click

from glm_export.errors import message
from glm_export.progress import NullProgress, Progress, shown

LEVELS = ("debug", "info", "warning", "error")
LOGGER = logging.getLogger("glm_export")
STATE, DEBUG = "glm_export.saying", "glm_export.debug"


class Remarks(logging.StreamHandler[TextIO]):
    """Log lines on standard error, whichever stream that is now: above the bars, where there are some.

    Each is one line that acts on no terminal, as errors are said; with its level and place once somebody asked for more
    than warnings.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        """Message alone, or what it is of besides."""
        said = message(record.getMessage())
        asked = LOGGER.level not in (logging.NOTSET, logging.WARNING, logging.ERROR)
        return f"{record.levelname.lower()} {record.name}: {said}" if asked else said


def saying(ctx: click.Context) -> dict[str, Any]:
    """What was asked for so far in this call of the command line."""
    found: dict[str, Any] = ctx.find_root().meta.setdefault(STATE, {})
    return found


def is_quiet() -> bool:
    """Whether progress and remarks are to be left out."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(saying(context).get("quiet"))


@contextmanager
def progress(*, still: bool = False) -> Iterator[Progress]:
    """Progress as it was asked for; ``still``: drawn when something changes alone, where something is measured."""
    if is_quiet():
        yield NullProgress()
        return
    from glm_export.terminal.console import MESSAGES

    with shown(MESSAGES, still=still) as made:
        yield made


def _changes(ctx: click.Context) -> dict[str, Any]:
    """What was asked for so far; when the call ends all is as it was, for one process may make several."""
    root, level = ctx.find_root(), LOGGER.level
    if STATE not in root.meta:
        root.call_on_close(lambda: _as_it_was(level))
    return saying(ctx)


def _as_it_was(level: int) -> None:
    from glm_export.terminal.console import MESSAGES

    LOGGER.setLevel(level)
    MESSAGES.quiet = False


def _quiet(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from glm_export.terminal.console import MESSAGES

        _once(ctx, "quiet")
        MESSAGES.quiet = True
        LOGGER.setLevel(logging.ERROR)


def _verbose(ctx: click.Context, _: click.Parameter, times: int) -> None:
    if times:
        _once(ctx, "verbose")
        LOGGER.setLevel(logging.INFO if times == 1 else logging.DEBUG)


def _level(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        _changes(ctx)["level"] = name
        LOGGER.setLevel(name.upper())


def _once(ctx: click.Context, what: str) -> None:
    said = _changes(ctx)
    said[what] = True
    if said.get("quiet") and said.get("verbose"):
        raise click.UsageError("-q says less and -v says more; give one of them")


def _debug(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.find_root().meta[DEBUG] = True


def options(panel: str) -> list[click.RichOption]:
    """``-q``, ``-v``, ``--log-level`` and ``--debug``, for the group and for every verb."""
    shared: dict[str, Any] = {"expose_value": False, "is_eager": True, "panel": panel}
    return [
        click.RichOption(
            ["-q", "--quiet"],
            is_flag=True,
            callback=_quiet,
            help="No progress and no remarks; errors are said.",
            **shared,
        ),
        click.RichOption(
            ["-v", "--verbose"],
            count=True,
            metavar="",
            callback=_verbose,
            help="Say what is done; -vv: all that is logged.",
            **shared,
        ),
        click.RichOption(
            ["--log-level"],
            type=click.Choice(LEVELS),
            metavar="NAME",
            callback=_level,
            help=f"Of Python's log of glm_export. One of {', '.join(LEVELS)}. Default: warning.",
            **shared,
        ),
        click.RichOption(["--debug"], is_flag=True, callback=_debug, help="Show the traceback of an error.", **shared),
    ]
