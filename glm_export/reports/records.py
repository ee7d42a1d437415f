"""What a report is made of, as frozen records that know neither HTML nor a plotting library.

Every item says what its numbers mean, and what can be seen in it in a sentence, for people who see no plots.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeAlias

SCHEMA = "glm-export/report/1"
"""Of :meth:`Report.to_json`: raised where a name goes or changes its meaning, not where one comes."""
Cell: TypeAlias = str | float | int | bool | None


def figure(value: Cell) -> str:
    """A number for people: four digits, powers of ten where it is very small or large; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def size(count: float) -> str:
    """Bytes for people, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing a report judges, or measures without judging.

    ``measured`` and ``bound`` are numbers of one unit, so that they can be drawn; ``said`` and ``allowed`` say them in
    words where a number alone would not do. ``at_least``: the bound is to be reached, not kept below. ``passed``: None
    where nothing is judged. ``planted``: what the same measure reads where a known defect is planted, and
    ``planted_what`` says which.
    """

    name: str
    definition: str
    measured: float | None = None
    bound: float | None = None
    said: str | None = None
    allowed: str | None = None
    at_least: bool = False
    passed: bool | None = None
    planted: float | None = None
    planted_what: str | None = None

    @property
    def verdict(self) -> str:
        """In one word."""
        return {True: "passed", False: "failed", None: "measured"}[self.passed]

    @property
    def measured_text(self) -> str:
        """What was measured."""
        return self.said if self.said is not None else figure(self.measured)

    @property
    def bound_text(self) -> str:
        """What is allowed."""
        if self.allowed is not None:
            return self.allowed
        return "none" if self.bound is None else f"{'at least' if self.at_least else 'at most'} {figure(self.bound)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is so. ``definition``: what it means, where the name does not say it."""

    name: str
    value: str
    definition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    definition: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Numbers with their meanings. ``marked``: rows that are beyond a bound, by index. ``folded``: shown on demand."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    definition: str = ""
    marked: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Errors by two names. ``values`` ``[rows][columns]``; None where there is none. ``bound``: beyond it is a failure.

    ``alt``: what is seen in it. ``table``: the numbers behind it. ``folded``: shown on demand.
    """

    kind: ClassVar[str] = "heat"
    title: str
    definition: str
    alt: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_name: str
    column_name: str
    bound: float | None
    table: Table
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour. ``connected``: by lines."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    connected: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Series over one axis, logarithmic where ``log``; then what is below ``floor`` is drawn there.

    ``x_names``: what the places 0, 1, 2 … are called, where they are no numbers.
    """

    kind: ClassVar[str] = "lines"
    title: str
    definition: str
    alt: str
    series: tuple[Series, ...]
    x_name: str
    y_name: str
    table: Table
    log: bool = True
    floor: float = 1e-12
    bound: float | None = None
    bound_name: str = "bound"
    x_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One bar a name. ``mark``: a line across all of them."""

    kind: ClassVar[str] = "bars"
    title: str
    definition: str
    alt: str
    names: tuple[str, ...]
    values: tuple[float | None, ...]
    value_name: str
    table: Table
    log: bool = False
    mark: float | None = None
    mark_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Two numbers of one kind a name, joined by a line: the usual and the largest."""

    kind: ClassVar[str] = "spans"
    title: str
    definition: str
    alt: str
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    low_name: str
    high_name: str
    value_name: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token of a text. ``number``: its id."""

    text: str | None
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What two sides wrote behind one prompt. ``parted``: the first place, from 0, where they differ."""

    kind: ClassVar[str] = "texts"
    title: str
    definition: str
    prompt: str
    names: tuple[str, str]
    sides: tuple[tuple[Piece, ...], tuple[Piece, ...]]
    parted: int | None
    note: str


Item: TypeAlias = Table | HeatMap | Lines | Bars | Spans | Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Items under one heading. ``key``: what it is called in addresses and JSON. ``text``: paragraphs before them."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One verb's findings. ``passed``: None where it measures and does not judge.

    ``sentence``: the finding. ``about``: what the claims' numbers mean, all of them. ``command``: the line that repeats
    it. ``signature``: whether what was examined is signed. ``environment`` and ``hashes``: on what, and of what.
    ``measured``: the verb's own JSON.
    """

    verb: str
    subject: str
    sentence: str
    passed: bool | None
    about: tuple[str, ...]
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
    command: str
    signature: str
    environment: tuple[Fact, ...]
    hashes: tuple[tuple[str, str], ...]
    measured: dict[str, Any]

    @property
    def verdict(self) -> str:
        """In one word."""
        return {True: "passed", False: "failed", None: "measured"}[self.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what JSON has no number for is a text, ``Infinity``, ``-Infinity`` or ``NaN``."""
        # Not ``asdict``: it would copy what was measured, and drop what items are called.
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        own["claims"] = [asdict(claim) | {"verdict": claim.verdict} for claim in self.claims]
        own["sections"] = [
            asdict(section) | {"items": [{"kind": item.kind} | asdict(item) for item in section.items]}
            for section in self.sections
        ]
        own["environment"] = [asdict(fact) for fact in self.environment]
        own["hashes"] = dict(self.hashes)
        plain: dict[str, Any] = json_values({"schema": SCHEMA} | own)
        return plain


def json_values(value: Any) -> Any:
    """Values as JSON has them."""
    if isinstance(value, dict):
        return {str(name): json_values(item) for name, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
