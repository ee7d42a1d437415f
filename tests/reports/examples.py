"""Small reports, made by hand, of everything a report can hold."""

from __future__ import annotations

from glm_export.machine.facts import Machine
from glm_export.reports.records import (
    Bars,
    Claim,
    Column,
    Fact,
    HeatMap,
    Lines,
    Piece,
    Report,
    Section,
    Series,
    Spans,
    Table,
    Texts,
)
from glm_export.reports.run import Run

HOSTILE = "<script>document.title='run'</script>\"'&{{ 7 * 7 }}$x$\u202e\x1b[31m"
"""What a folder's name or a token may be."""
RUN = Run(
    command="glm-export check a --against b", ended="2026-01-01 00:00:00 UTC", seconds=1.5, peak_bytes=10**9,
    machine=Machine(
        processor="a processor", cores=2, memory_bytes=None, system="Linux", gpu=None, python="3.11",
        packages={"torch": "2"},
    ),
    flags=("avx2",),
)  # fmt: skip


def numbers(title: str) -> Table:
    columns = (Column(name="name", numeric=False, definition="What it is called."), Column(name="number"))
    return Table(title=title, columns=columns, rows=(("one", 1e-7), ("two", None)), marked=frozenset({1}), folded=True)


def items(text: str) -> tuple[Table | HeatMap | Lines | Bars | Spans | Texts, ...]:
    """One of each kind."""
    said = {"definition": "What it means.", "alt": f"What is seen: {text}", "table": numbers(text)}
    sides = tuple(tuple(Piece(text=piece, number=n) for n, piece in enumerate(("a", text, "", None))) for _ in range(2))
    return (
        numbers(text),
        HeatMap(
            title=text, rows=("0", text), columns=("0", "1", "2"),
            values=((1e-7, None, 1e-4), (2.0, float("inf"), 0.0)),
            row_name="layer", column_name="column", bound=1e-5, **said,
        ),
        Lines(
            title=text, series=(Series(name=text, x=(0.0, 1.0, 2.0), y=(1e-3, None, float("inf"))),), x_name="x",
            y_name="y", bound=1e-2, **said,
        ),
        Bars(title=text, names=(text, "b"), values=(1.0, None), value_name="n", mark=0.5, mark_name=text, **said),
        Spans(
            title=text, names=(text,), low=(1.0,), high=(10.0,), low_name="low", high_name="high",
            value_name="n", **said
        ),
        Texts(
            title=text, definition="What it means.", prompt=text, names=("one", text), sides=(sides[0], sides[1]),
            parted=1, note=text,
        ),
    )  # fmt: skip


def report(text: str = "a text", *, passed: bool | None = True) -> Report:
    """Every kind of item, with a text wherever one comes from outside."""
    claims = (
        Claim(
            name=text,
            definition="What it means.",
            measured=1e-6,
            bound=1e-5,
            passed=passed is not False,
            planted=1.0,
            planted_what=text,
        ),
        Claim(name="measured", definition="Nothing is judged.", said=text),
        Claim(name="shares", definition="At least.", measured=0.5, bound=0.9, at_least=True, passed=False),
    )
    return Report(
        verb="check", subject=text, sentence=text, passed=passed, about=(text,), claims=claims,

        sections=(
            Section(key="all", title=text, text=(text,), facts=(Fact(name="f", value=text),), items=items(text)),
        ),
        command=text, signature=text, environment=(Fact(name="folder", value=text), *RUN.facts()),
        hashes=((text, "0" * 64),), measured={"kl": float("inf"), "text": text},
    )  # fmt: skip
