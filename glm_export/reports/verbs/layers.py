"""Sections on the first guilty layer, as a walk through the layers found it, and on what broken variants read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm_export.proof.controls import Control
from glm_export.reports.records import Column, Fact, HeatMap, Item, Lines, Section, Series, Table, figure

NODE = ("operator", "name", "module", "slice", "case", "output", "expected", "error")
"""What is shown of a node, where it is known."""
OWN = (
    "Every layer is given what the reference gives it, so that what differs is its own; together is what the program "
    "has come to by itself."
)


def layers_values(examined: Mapping[str, Any]) -> dict[str, Any]:
    """What an examination says of slices and cases, as :func:`layers_section` takes it: the worst of the cases.

    Args:
        examined: ``errors``, a list of ``{"slice", "case", "alone", "together", "positions"}``, where ``alone`` and
            ``together`` map what a slice puts out to its error; ``tolerance``; ``first`` with its ``slice``; ``node``;
            ``uncut``; ``command``.
    """
    layers: list[dict[str, Any]] = []
    for error in examined.get("errors") or ():
        own, all_of_it = (max(map(float, error[name].values()), default=0.0) for name in ("alone", "together"))
        layers.append({"layer": error["slice"], "error": own, "together": all_of_it})
        layers += [
            {"layer": error["slice"], "position": place, "error": float(value)}
            for place, value in enumerate(error.get("positions") or ())
        ]
    first = examined.get("first")
    kept = {name: examined.get(name) for name in ("node", "uncut", "command")}
    return kept | {"layers": layers, "bound": examined.get("tolerance"), "first": first and first["slice"]}


def controls_section(controls: Sequence[Control]) -> Section:
    """What broken variants of the same side read, asked the same."""
    rows = tuple((control.name, control.needed, control.bound, control.case) for control in controls)
    columns = (
        Column(name="variant", numeric=False),
        Column(name="reads"),
        Column(name="allowed"),
        Column(name="in case", numeric=False),
    )
    missed = frozenset(place for place, control in enumerate(controls) if not control.noticed)
    text = "Each must fail: a check that passes one proves too little."
    table = Table(title="Broken variants", columns=columns, rows=rows, marked=missed)
    return Section(key="controls", title="Controls", text=(text,), facts=(), items=(table,))


def layers_section(layers: Mapping[str, Any]) -> Section:
    """Error over layers, the first that is beyond the bound, and its node.

    Args:
        layers: ``layers``, a list of ``{"layer", "error"}`` in their order, several of one layer where each also has a
            ``"position"``, with ``"together"`` where it is known what the program itself has come to; ``bound``, which
            an error is not to exceed; ``first``, the guilty layer, or None; ``node``, or None: ``operator``, ``name``,
            ``module``, ``inputs`` (a list of records of plain values), ``hints`` (a list of sentences); ``saved``, the
            path of the smallest program that shows it, and ``command``, which runs it; ``uncut``, why layers were not
            looked at. All but ``layers`` may be missing.
    """
    errors: list[Mapping[str, Any]] = list(layers["layers"])
    if not errors:
        why = layers.get("uncut") or "there is none"
        return Section(key="layers", title="First guilty layer", text=(f"Layers were not looked at: {why}.",))
    first, bound, node = layers.get("first"), layers.get("bound"), layers.get("node")
    text = (
        "No layer is beyond the bound."
        if first is None
        else f"First guilty: {first}, by its own error; those behind it are given what the reference gives them."
    )
    items: list[Item] = [_over_layers(errors, bound)]
    placed = [error for error in errors if error.get("position") is not None]
    if any(error["position"] for error in placed):
        items.append(_by_position(placed, bound))
    facts: list[Fact] = []
    if node:
        facts = [Fact(name=name, value=figure(node[name])) for name in NODE if node.get(name) is not None]
        items += _inputs(node.get("inputs") or [])
    told = {"saved": "The smallest program that shows it.", "command": "Runs it again."}
    facts += [Fact(name=name, value=str(layers[name]), definition=told[name]) for name in told if layers.get(name)]
    hints = tuple(f"Hint: {hint}" for hint in (node or {}).get("hints") or ())
    return Section(
        key="layers", title="First guilty layer", text=(text, *hints), facts=tuple(facts), items=tuple(items)
    )


def _worst(errors: Sequence[Mapping[str, Any]], what: str = "error") -> dict[str, float]:
    worst: dict[str, float] = {}
    for error in errors:
        if error.get(what) is not None:
            name = str(error["layer"])
            worst[name] = max(worst.get(name, 0.0), float(error[what]))
    return worst


def _over_layers(errors: Sequence[Mapping[str, Any]], bound: float | None) -> Lines:
    worst, together = _worst(errors), _worst(errors, "together")
    places = tuple(map(float, range(len(worst))))
    series = [Series(name="own error", x=places, y=tuple(worst.values()))]
    if together:
        come_to = tuple(together.get(name) for name in worst)
        series.append(Series(name="what has come together", x=places, y=come_to))
    table = Table(
        title="The numbers behind it: each layer's own error",
        folded=True,
        columns=(Column(name="layer", numeric=False), Column(name="own error"), Column(name="together")),
        rows=tuple((name, error, together.get(name)) for name, error in worst.items()),
        marked=frozenset(n for n, error in enumerate(worst.values()) if bound is not None and error > bound),
    )
    largest = max(worst, key=worst.__getitem__)
    return Lines(
        title="Each layer's own error",
        definition=OWN,
        alt=f"The largest is {figure(worst[largest])}, in layer {largest}; {figure(bound)} is allowed.",
        series=tuple(series),
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
