"""Where the error stands: layer by position, and over layers, from the keys and values that are outputs anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm_export.proof.measures.positions import PositionErrors
from glm_export.reports.records import Column, HeatMap, Lines, Section, Series, Table, figure

WHY = (
    "Keys and values of every layer are outputs of the program, so they say where an error comes in: a layer's column "
    "holds what the layers before it made of that token."
)


def where_section(positions: Sequence[PositionErrors], bound: float) -> Section | None:
    """Heat maps of every case, the worst first, and the error over layers; None where nothing was measured.

    Args:
        positions: of every output; the logits have no layer, and are left out.
        bound: what each output is allowed, as a share of its largest value.
    """
    caches = [one for one in positions if one.layer is not None]
    if not caches:
        return None
    by_case: dict[str, list[PositionErrors]] = {}
    for one in caches:
        by_case.setdefault(one.case, []).append(one)
    failing = [case for case, ones in by_case.items() if max(one.worst for one in ones) > bound]
    # Where many columns are new there is most to see.
    shown = max(failing or by_case, key=lambda case: len(by_case[case][0].errors) - _given(by_case[case][0]))
    return Section(
        key="where",
        title="Where the error stands",
        text=(WHY,),
        items=(
            _heat(shown, by_case[shown], bound, folded=False),
            _over_layers(by_case, bound),
            *(_heat(case, ones, bound, folded=True) for case, ones in by_case.items() if case != shown),
        ),
    )


def _given(one: PositionErrors) -> int:
    """Columns, or groups of them, that are the past alone: both sides were given it."""
    return one.past // one.columns_each


def _heat(case: str, ones: Sequence[PositionErrors], bound: float, *, folded: bool) -> HeatMap:
    layers = sorted({one.layer for one in ones if one.layer is not None})
    pairs = {layer: [one for one in ones if one.layer == layer] for layer in layers}
    given, each = _given(ones[0]), ones[0].columns_each
    values = tuple(
        tuple(_larger(cells) for cells in zip(*(one.errors[given:] for one in pairs[layer]), strict=True))
        for layer in layers
    )
    largest, layer, column = max(
        (value, layer, column)
        for layer, row in zip(layers, values, strict=True)
        for column, value in enumerate(row)
        if value is not None
    )
    first = next(
        (layer for layer, row in zip(layers, values, strict=True) if max(filter(None, row), default=0) > bound), None
    )
    beyond = "no cell is beyond the bound" if first is None else f"layer {first} is the first beyond the bound"
    read = f"; the {given * each} columns before are the past that both sides were given" if given else ""
    return HeatMap(
        title=f"Layer by position: {case}",
        definition=(
            "The larger error of a layer's keys and values in each column, over rows, heads and dimensions, as a share "
            f"of the largest reference value{f'; {each} neighbouring columns are one cell' if each > 1 else ''}{read}. "
            "Padding has no cell. Each colour is half a power of ten."
        ),
        alt=f"The largest error is {figure(largest)}, in layer {layer}, column {(given + column) * each}; {beyond} of "
        f"{figure(bound)}.",
        rows=tuple(map(str, layers)),
        columns=tuple(str((given + column) * each) for column in range(len(values[0]))),
        values=values,
        row_name="layer",
        column_name="column of the cache",
        bound=bound,
        folded=folded,
        table=_heat_table(case, pairs, bound),
    )


def _larger(cells: Sequence[float | None]) -> float | None:
    return max((cell for cell in cells if cell is not None), default=None)


def _heat_table(case: str, pairs: Mapping[int, Sequence[PositionErrors]], bound: float) -> Table:
    rows = []
    for layer, ones in pairs.items():
        cells: list[Any] = [layer]
        for one in sorted(ones, key=lambda one: str(one.part)):
            worst = one.worst
            cells += [worst, one.errors.index(worst) * one.columns_each if worst in one.errors else None]
        rows.append(tuple(cells))
    return Table(
        title=f"The numbers behind it: {case}",
        columns=(
            Column(name="layer"),
            Column(name="keys", definition="Largest error of the layer's keys, as a share of their largest value."),
            Column(name="column", definition="Where it stands."),
            Column(name="values", definition="The same of its values."),
            Column(name="column "),
        ),
        rows=tuple(rows),
        marked=frozenset(n for n, row in enumerate(rows) if max(cell or 0 for cell in row[1::2]) > bound),
        folded=True,
    )


def _over_layers(by_case: Mapping[str, Sequence[PositionErrors]], bound: float) -> Lines:
    layers = sorted({one.layer for ones in by_case.values() for one in ones if one.layer is not None})
    series = tuple(
        Series(
            name=case,
            x=tuple(map(float, layers)),
            y=tuple(max((one.worst for one in ones if one.layer == layer), default=None) for layer in layers),
        )
        for case, ones in by_case.items()
    )
    worst = [max(one.y[n] or 0.0 for one in series) for n in range(len(layers))]
    return Lines(
        title="Error over layers",
        definition="The largest error of each layer's keys and values, of all columns, a line a case.",
        alt=f"From {figure(worst[0])} in layer {layers[0]} to {figure(worst[-1])} in layer {layers[-1]}, the worst of "
        f"all cases; {figure(bound)} is allowed.",
        series=series,
        x_name="layer",
        y_name="share of the largest value",
        bound=bound,
        bound_name="allowed",
        floor=1e-9,
        table=Table(
            title="The numbers behind it: error over layers",
            folded=True,
            columns=(Column(name="layer"), *(Column(name=one.name) for one in series)),
            rows=tuple((layer, *(one.y[n] for one in series)) for n, layer in enumerate(layers)),
        ),
    )
