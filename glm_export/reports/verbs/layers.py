"""The section on the first guilty layer: what a walk through the layers found, given as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm_export.reports.records import Column, Fact, HeatMap, Item, Lines, Section, Series, Table, figure


def layers_section(layers: Mapping[str, Any]) -> Section:
    """Error over layers, the first that is beyond the bound, and its node.

    Args:
        layers: ``layers``, a list of ``{"layer", "error"}`` in their order, several of one layer where each also has a
            ``"position"``; ``bound``, which an error is not to exceed; ``first``, the guilty layer, or None; ``node``,
            or None: ``operator``, ``name``, ``module``, ``inputs`` (a list of records of plain values), ``hints`` (a
            list of sentences); ``saved``, the path of the smallest program that shows it, and ``command``, which runs
            it. All but ``layers`` may be missing.
    """
    errors: list[Mapping[str, Any]] = list(layers["layers"])
    first, bound, node = layers.get("first"), layers.get("bound"), layers.get("node")
    text = (
        "No layer is beyond the bound."
        if first is None
        else f"Layer {first} is the first whose own error is beyond the bound."
    )
    items: list[Item] = [_over_layers(errors, bound)]
    if any(error.get("position") for error in errors):
        items.append(_by_position(errors, bound))
    facts: list[Fact] = []
    if node:
        facts = [Fact(name=name, value=str(node[name])) for name in ("operator", "name", "module") if node.get(name)]
        items += _inputs(node.get("inputs") or [])
    told = {"saved": "The smallest program that shows it.", "command": "Runs it again."}
    facts += [Fact(name=name, value=str(layers[name]), definition=told[name]) for name in told if layers.get(name)]
    hints = tuple(f"Hint: {hint}" for hint in (node or {}).get("hints") or ())
    return Section(
        key="layers", title="First guilty layer", text=(text, *hints), facts=tuple(facts), items=tuple(items)
    )


def _worst(errors: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for error in errors:
        name = str(error["layer"])
        worst[name] = max(worst.get(name, 0.0), float(error["error"]))
    return worst


def _over_layers(errors: Sequence[Mapping[str, Any]], bound: float | None) -> Lines:
    worst = _worst(errors)
    table = Table(
        title="The numbers behind it: each layer's own error",
        folded=True,
        columns=(Column(name="layer", numeric=False), Column(name="error")),
        rows=tuple(worst.items()),
        marked=frozenset(n for n, error in enumerate(worst.values()) if bound is not None and error > bound),
    )
    largest = max(worst, key=worst.__getitem__)
    return Lines(
        title="Each layer's own error",
        definition="Every layer is given what the reference gives it, so that what differs is its own doing.",
        alt=f"The largest is {figure(worst[largest])}, in layer {largest}; {figure(bound)} is allowed.",
        series=(Series(name="own error", x=tuple(map(float, range(len(worst)))), y=tuple(worst.values())),),
        x_name="layer",
        x_names=tuple(worst),
        y_name="share of the largest value",
        floor=1e-9,
        bound=bound,
        bound_name="allowed",
        table=table,
    )


def _by_position(errors: Sequence[Mapping[str, Any]], bound: float | None) -> HeatMap:
    names = list(_worst(errors))
    width = 1 + max(int(error.get("position") or 0) for error in errors)
    values: dict[str, list[float | None]] = {name: [None] * width for name in names}
    for error in errors:
        values[str(error["layer"])][int(error.get("position") or 0)] = float(error["error"])
    rows = []
    for name, row in values.items():
        largest, place = max((value, place) for place, value in enumerate(row) if value is not None)
        rows.append((name, largest, place))
    worst = max(rows, key=lambda row: row[1])
    columns = (Column(name="layer", numeric=False), Column(name="largest"), Column(name="position"))
    return HeatMap(
        title="Each layer's own error by position",
        definition="The same, token by token.",
        alt=f"The largest is {figure(worst[1])}, in layer {worst[0]}, position {worst[2]}.",
        rows=tuple(names),
        columns=tuple(map(str, range(width))),
        values=tuple(tuple(row) for row in values.values()),
        row_name="layer",
        column_name="position",
        bound=bound,
        table=Table(title="The numbers behind it: by position", columns=columns, rows=tuple(rows), folded=True),
    )


def _inputs(inputs: Sequence[Mapping[str, Any]]) -> list[Item]:
    if not inputs:
        return []
    names = list(dict.fromkeys(name for given in inputs for name in given))
    return [
        Table(
            title="What the node is given",
            columns=tuple(Column(name=name, numeric=name in ("least", "largest")) for name in names),
            rows=tuple(tuple(_cell(given.get(name)) for name in names) for given in inputs),
        )
    ]


def _cell(value: Any) -> str | float | int | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)
