"""Tables whose numbers are whole at any width: where the columns do not fit, each row becomes lines of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT = 2
COMMAND = re.compile(r"\b(pip install|hf download|glm-export) ")
"""Where a line begins that is typed as it stands."""
LEAST_PROSE = 20
"""Columns that a text of several words has at least: narrower ones are a word a line."""
WIDE = 10_000
"""Columns, more than any table has: so wide its least width is measured, not what it is given."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. ``number``: to the right, and never broken; ``prose``: may be broken between words."""

    name: str = ""
    number: bool = False
    prose: bool = False
    style: str | None = None


EXPLAINED = (Column(style="dim"), Column(number=True), Column(prose=True, style="dim"))
"""What is measured, the figure, and what that is: tables without a header."""


def columns(*names: str, number: bool = False) -> list[Column]:
    """Columns of one kind."""
    return [Column(name, number=number) for name in names]


def show_table(
    console: Console,
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    header: bool = True,
    grouped: bool = False,
) -> None:
    """Print rows as a table; where that is wider than the console each as lines of names and values, all of them whole.

    Args:
        console: where to.
        heads: the columns; the first says what a row is of.
        rows: cells of each as markup; empty ones are left out of lines.
        title: above it, never cut.
        header: with the columns' names. Without one the second cell is what the first has, and others explain it.
        grouped: rows that begin alike stand together, and their first cell is written once.
    """
    if title is not None:
        console.print(title, style="italic", soft_wrap=True)
    if _least_width(console, heads, rows, header=header) <= console.width:
        console.print(_table(heads, rows, header=header, grouped=grouped))
        return
    console.print()
    before = None
    for row in rows:
        _show_row(console, heads, row, header=header, named=not (grouped and row[0] == before))
        before = row[0]
    console.print()


def _least_width(console: Console, heads: Sequence[Column], rows: Sequence[Sequence[str]], *, header: bool) -> int:
    """Of a table whose cells are whole, but for prose between words: rich's own measure is of single words."""

    def whole(head: Column, markup: str) -> str:
        plain = Text.from_markup(markup).plain
        words = f"{plain} {'_' * min(cell_len(plain), LEAST_PROSE)}" if head.prose else plain.replace(" ", "_")
        return escape(words)

    named = [replace(head, name=whole(head, head.name)) for head in heads]
    cells = [[whole(head, cell) for head, cell in zip(heads, row, strict=True)] for row in rows]
    table = _table(named, cells, header=header, grouped=False)
    return Measurement.get(console, console.options.update(width=WIDE), table).minimum


def _table(heads: Sequence[Column], rows: Sequence[Sequence[str]], *, header: bool, grouped: bool) -> Table:
    table, before = Table(box=SIMPLE, show_header=header, pad_edge=False), None
    for head in heads:
        table.add_column(
            head.name,
            justify="right" if head.number else "left",
            style=head.style,
            no_wrap=not head.prose,
            overflow="fold",
        )
    for row in rows:
        first = "" if grouped and row[0] == before else row[0]
        table.add_row(first, *row[1:])
        before = row[0]
    return table


def _show_row(
    console: Console, heads: Sequence[Column], row: Sequence[str], *, header: bool, named: bool = True
) -> None:
    """A row in as few lines as hold it; what is longer than a line is broken between words."""
    first, *rest = row
    if header:
        if named and first:
            console.print(console.render_str(first, style="bold"), overflow="fold")
        cells = [(head.name, cell) for head, cell in zip(heads[1:], rest, strict=True)]
    else:
        console.print(console.render_str(f"{first}  {rest[0]}".strip()), overflow="fold")
        cells = [("", cell) for cell in rest[1:]]
    line = Text()
    for name, cell in cells:
        if not cell:
            continue
        piece = Text.assemble((f"{name} " if name else "", "dim"), console.render_str(cell))
        if line and INDENT + line.cell_len + 2 + piece.cell_len > console.width:
            console.print(Padding(line, (0, 0, 0, INDENT)), overflow="fold")
            line = Text()
        line = Text("  ").join([line, piece]) if line else piece
    if line:
        console.print(Padding(line, (0, 0, 0, INDENT)), overflow="fold")


def show_facts_grid(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Names and what is so called, in two columns without lines; texts are broken between words, never cut.

    A word that is longer than its column (a path, a hash) and a command to be typed stand whole on a line of their own,
    which the screen may break and copying does not.

    Args:
        console: where to.
        rows: name, and markup that may have several lines.
    """
    indent = max((cell_len(name) for name, _ in rows), default=0) + 2
    room = max(console.width - indent, 1)
    for name, said in rows:
        head = Text(set_cell_size(name, indent), "dim")
        for line in said.split("\n"):
            for piece in _whole_pieces(console.render_str(line), room):
                console.print(Text.assemble(head, piece), soft_wrap=True)
                head = Text(" " * indent)


def _whole_pieces(text: Text, room: int) -> list[Text]:
    """A line as it fits beside a name: its prose in lines of their own where it holds what must stay whole."""
    if text.cell_len <= room:
        return [text]
    if (command := COMMAND.search(text.plain)) is not None:
        before, typed = text.divide([command.start()])
        before.rstrip()
        return [*(_whole_pieces(before, room) if before.plain else []), typed]
    pieces: list[Text] = []
    for word in text.split(" "):
        if pieces and pieces[-1].cell_len + 1 + word.cell_len <= room:
            pieces[-1] = Text(" ").join([pieces[-1], word])
        else:
            pieces.append(word)
    return pieces


def counted(number: int, what: str, plural: str | None = None) -> str:
    """A number and what it counts, thousands apart: ``1 layer``, ``1,024 layers``.

    Args:
        number: how many.
        what: one of them.
        plural: several, where that is not ``what`` with an s.
    """
    return f"{number:,} {what if number == 1 else plural or f'{what}s'}"
