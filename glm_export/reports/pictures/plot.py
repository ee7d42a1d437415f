"""One picture, or one table, of what verbs wrote down."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glm_export.deployment.extras import require_report_extra
from glm_export.errors import InputError
from glm_export.reports import plots
from glm_export.reports.pictures import panels
from glm_export.reports.pictures.records import cost_bars, reach_lines
from glm_export.reports.pictures.sources import Found, read
from glm_export.reports.pictures.themes import MARK, THEMES, as_png, as_svg
from glm_export.reports.records import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png", ".csv")
WIDTH, PANEL_WIDTH = 7.5, 9.0
HEAD_BYTES = 4096
FIRST_COLUMNS = ("input of,", "layer,", "program,")
"""How a table of ours begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What will be written: how it is drawn, its inches, what is seen in it, and the numbers behind it."""

    fill: Callable[[Figure, bool], None]
    width: float
    height: float
    title: str
    table: Table


def plot(sources: Sequence[str | Path], out: str | Path, *, theme: str = "auto", force: bool = False) -> Path:
    """Draw what verbs measured: activations layer by layer, what each layer costs, or programs beside each other.

    Args:
        sources: a folder of ranges or its report's JSON; the JSON of ``quality --by-layer``; or exported folders, and
            JSON of ``bench`` and ``quality`` about them, in the order in which they are to be shown.
        out: a file, ``.svg``, ``.png`` or ``.csv`` (the numbers, all of them).
        theme: ``light``, ``dark``, or ``auto``: an SVG has both and its reader's system chooses, a PNG is light.
        force: replace a file that this function wrote.

    Returns:
        the file.

    Raises:
        InputError: there is nothing to draw, two things at once, or the file may not be written.
        EnvironmentMissingError: Matplotlib is not installed, and no table was asked for.
    """
    path = _require_out(Path(out), [Path(source) for source in sources], force=force)
    if theme not in THEMES:
        raise InputError(f"theme {theme!r} is unknown; known: {', '.join(THEMES)}")
    picture = _picture(read([Path(source) for source in sources]))
    if path.suffix == ".csv":
        data = _csv(picture.table)
    elif path.suffix == ".svg":
        data = as_svg(picture.fill, picture.width, picture.height, theme, picture.title)
    else:
        data = as_png(picture.fill, picture.width, picture.height, theme)
    _write(path, data, force=force)
    return path


def _picture(found: Found) -> Picture:
    """The one thing that was given.

    Raises:
        InputError: nothing was, or several things.
    """
    # What one program costs layer by layer; beside others it is one of the programs.
    costs = found.costs if len(found.programs) == 1 else []
    if bool(found.reaches) + bool(found.programs) != 1 or len(found.reaches) > 1:
        raise InputError(
            "a picture shows one folder of ranges, or programs beside each other; found "
            f"{len(found.reaches)} of ranges and {len(found.programs)} programs"
        )
    if found.reaches:
        lines = reach_lines(found.reaches[0])
        return Picture(
            fill=plots.filling(lines), width=WIDTH, height=3.0, title=f"{lines.title}. {lines.alt}", table=lines.table
        )
    if costs:
        bars = cost_bars(costs[0], estimated=found.estimated)
        height = plots.height_of(bars)
        return Picture(
            fill=plots.filling(bars), width=WIDTH, height=height, title=f"{bars.title}. {bars.alt}", table=bars.table
        )
    programs = list(found.programs.values())
    if not panels.known(programs):
        raise InputError("nothing is known of these programs; give their folders, or JSON of bench and quality")
    return Picture(
        fill=panels.filling(programs),
        width=PANEL_WIDTH,
        height=panels.height_of(programs),
        title=f"{len(programs)} programs beside each other: {', '.join(program.name for program in programs)}.",
        table=panels.table_of(programs),
    )


def _csv(table: Table) -> bytes:
    """A head and rows; what is not known is empty."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow([column.name for column in table.columns])
    rows.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return written.getvalue().encode()


def _require_out(path: Path, sources: Sequence[Path], *, force: bool) -> Path:
    """See, before any work, that the file can be written."""
    if path.suffix not in ENDINGS or path.name in ENDINGS:
        raise InputError(f"--out should be NAME{', NAME'.join(ENDINGS)}; found {str(path)!r}")
    if path.suffix != ".csv":
        require_report_extra()
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{path} cannot be made: {above} is no folder; give another --out")
    for source in sources:
        if not os.path.lexists(source):
            raise InputError(f"{source} is not there; give folders, or JSON that bench, quality or calibrate wrote")
        if source.is_dir() and source.resolve() in path.resolve().parents:
            raise InputError(f"{path} lies in {source}, which it is about; give an --out outside of it")
    if os.path.lexists(path):
        if not force:
            raise InputError(f"{path} exists; give another --out, or --force to replace it")
        _require_own(path)
    return path


def _require_own(path: Path) -> None:
    head = b""
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    own = MARK.encode() in head if path.suffix != ".csv" else head.startswith(tuple(map(str.encode, FIRST_COLUMNS)))
    if not own:
        raise InputError(f"{path} is no plot of glm-export, so --force does not replace it; remove it yourself")


def _write(path: Path, data: bytes, *, force: bool) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(path) and not force:
            raise InputError(f"{path} has come to be there meanwhile; give another --out, or --force to replace it")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
