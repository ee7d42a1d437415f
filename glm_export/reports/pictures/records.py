"""Records of one verb's findings that a picture shows: how far inputs reach, and what each layer costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from glm_export.errors import InputError
from glm_export.reports.pictures.sources import Reach
from glm_export.reports.records import Bars, Column, Lines, Series, Table, figure

MOST_BARS = 24
LAYER = re.compile(r"layers\.(\d+)\.")


def reach_lines(reaches: Sequence[Reach]) -> Lines:
    """Of each layer the input that reaches furthest: its largest value beside what nearly all of its values stay below.

    Raises:
        InputError: there is no layer.
    """
    layers: dict[int, list[Reach]] = {}
    for reach in reaches:
        found = LAYER.match(reach.name)
        if found:
            layers.setdefault(int(found[1]), []).append(reach)
    if not layers:
        raise InputError("the ranges have no layers; calibrate a checkpoint")
    furthest = [max(layers[layer], key=lambda one: one.largest) for layer in sorted(layers)]
    places = tuple(float(layer) for layer in sorted(layers))
    worst = max(furthest, key=lambda one: one.largest)
    series = (
        Series(name="largest", x=places, y=tuple(one.largest for one in furthest)),
        Series(name="99.99 % stay below", x=places, y=tuple(one.percentile for one in furthest)),
        Series(name="median channel's largest", x=places, y=tuple(one.median_channel for one in furthest)),
    )
    return Lines(
        title="How far inputs reach",
        definition="Of each layer the linear input with the largest magnitude.",
        alt=f"The furthest is {figure(worst.largest)}, the input of {worst.name}; 99.99 % of it stay below "
        f"{figure(worst.percentile)}.",
        series=series,
        x_name="layer",
        y_name="magnitude",
        floor=1e-6,
        table=Table(
            title="Every input",
            columns=(
                Column(name="input of", numeric=False),
                Column(name="largest"),
                Column(name="99.99 % stay below"),
                Column(name="median channel's largest"),
            ),
            rows=tuple((one.name, one.largest, one.percentile, one.median_channel) for one in reaches),
        ),
    )


def cost_bars(costs: Mapping[str, float], *, estimated: bool) -> Bars:
    """What each layer costs, quantized alone, the dearest first."""
    order = sorted(costs, key=lambda name: -costs[name])
    shown = order[:MOST_BARS]
    kind = "KL, nats a token, estimated" if estimated else "KL, nats a token"
    return Bars(
        title="What each layer costs, quantized alone",
        definition=f"The dearest {len(shown)} of {len(order)}.",
        alt=f"The dearest is {order[0]} with {figure(costs[order[0]])} nats a token.",
        names=tuple(shown),
        values=tuple(costs[name] for name in shown),
        value_name=kind,
        log=True,
        table=Table(
            title="Every layer",
            columns=(Column(name="layer", numeric=False), Column(name=kind)),
            rows=tuple((name, costs[name]) for name in order),
        ),
    )
