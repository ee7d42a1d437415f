"""What ``calibrate`` measured: how far activations reach, layer by layer, and how far single channels stand out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from glm_export.calibration.ranges import CHANNEL_MAXIMA, KEY, VALUE, Ranges, kv_name
from glm_export.reports.records import Claim, Column, Fact, Lines, Report, Section, Series, Spans, Table, figure, size
from glm_export.reports.run import Run, Subject, corpus_line

LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
OBSERVERS = ("min_max", "percentile", "entropy", "mse")
MOST_SPANS = 24
FLOAT16_LARGEST = float(np.finfo(np.float16).max)
ABOUT = (
    "Nothing is judged here but float16's reach. A channel stands out where its largest magnitude is many times that "
    "of the median channel: such outliers are what 8-bit activations lose most by, and what SmoothQuant and AWQ level."
)


def calibrate_report(ranges: Ranges, subject: Subject, run: Run) -> Report:
    """The findings of one ``calibrate``.

    Args:
        ranges: the folder that was written.
        subject: the checkpoint.
        run: on what.
    """
    outliers = {name: _outlier(ranges, name) for name in ranges.inputs}
    furthest = max(ranges.inputs, key=lambda name: ranges.threshold(name, "min_max"))
    worst = max(outliers, key=outliers.__getitem__)
    return Report(
        verb="calibrate",
        subject=subject.name,
        passed=None,
        about=(ABOUT,),
        sentence=f"Inputs reach {figure(ranges.threshold(furthest, 'min_max'))} ({_named(furthest)}); the furthest "
        f"outlier is {figure(outliers[worst])} times its median channel ({_named(worst)}).",
        claims=tuple(_claims(ranges, outliers, furthest, worst)),
        sections=(_reach(ranges), _channels(ranges, outliers), _caches(ranges)),
        command=run.command,
        signature=subject.signature,
        environment=(*subject.facts, *_written(ranges), *run.facts()),
        hashes=subject.hashes,
        measured={"manifest": ranges.manifest, "outliers": outliers, "thresholds": _thresholds(ranges)},
    )


def _named(weight: str) -> str:
    return weight.removesuffix(".weight")


def _outlier(ranges: Ranges, name: str) -> float:
    """An input's largest channel over its median one."""
    maxima = ranges.tensors[name + CHANNEL_MAXIMA]
    middle = float(np.median(maxima))
    return float(maxima.max()) / middle if middle > 0 else float("inf")


def _thresholds(ranges: Ranges) -> dict[str, dict[str, float]]:
    caches = [kv_name(layer, kind) for layer in range(ranges.layers) for kind in (KEY, VALUE)]
    return {
        name: {observer: ranges.threshold(name, observer) for observer in OBSERVERS}
        for name in (*ranges.inputs, *caches)
    }


def _claims(ranges: Ranges, outliers: dict[str, float], furthest: str, worst: str) -> list[Claim]:
    maxima = ranges.maxima()
    largest = max(maxima, key=maxima.__getitem__) if maxima else None
    reached = maxima[largest] if largest else ranges.threshold(furthest, "min_max")
    bits = float(np.log2(max(outliers[worst], 1.0)))
    return [
        Claim(
            name="float16's reach",
            measured=reached,
            bound=FLOAT16_LARGEST,
            passed=reached <= FLOAT16_LARGEST,
            definition=f"The largest magnitude of anything a layer makes{f', {largest}' if largest else ''}. What is "
            "beyond half of float16's largest number is exported in float32.",
        ),
        Claim(
            name="furthest input",
            measured=ranges.threshold(furthest, "min_max"),
            definition=f"The largest magnitude of a linear layer's input, that of {_named(furthest)}.",
        ),
        Claim(
            name="furthest outlier",
            said=f"{figure(outliers[worst])} times",
            measured=outliers[worst],
            definition=f"A channel's largest magnitude over the median channel's, in the input of {_named(worst)}. "
            f"With one scale for all of them the median channel has {max(0.0, 8 - bits):.1f} bits left of 8.",
        ),
    ]


def _by_part(names: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """Linear layers of one place in every layer: ``attention.qkv`` -> its layers and weights."""
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = LAYER.fullmatch(name)
        if found and not re.search(r"experts?\.\d+", found[2]):
            parts.setdefault(found[2], []).append((int(found[1]), name))
    return parts


def _reach(ranges: Ranges) -> Section:
    parts = _by_part(ranges.inputs)
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (_named(name), *(ranges.threshold(name, observer) for observer in OBSERVERS)) for name in ranges.inputs
    )
    largest = max(rows, key=lambda row: float(row[1]))
    lines = Lines(
        title="How far inputs reach, layer by layer",
        definition="The largest magnitude of the input of each linear layer, a line a place in the layer.",
        alt=f"The furthest is {figure(float(largest[1]))}, the input of {largest[0]}.",
        series=tuple(
            Series(
                name=part,
                x=tuple(float(layer) for layer, _ in found),
                y=tuple(ranges.threshold(name, "min_max") for _, name in found),
            )
            for part, found in parts.items()
        ),
        x_name="layer",
        y_name="largest magnitude",
        floor=1e-6,
        table=Table(
            title="The numbers behind it: where each observer would clip",
            folded=True,
            rows=rows,
            columns=(
                Column(name="input of", numeric=False),
                Column(name="min-max", definition="The largest magnitude: nothing is clipped."),
                Column(name="percentile", definition="99.99 % of the values are below it."),
                Column(name="entropy", definition="The least KL divergence from 128 levels."),
                Column(name="mse", definition="The least squared error of 127 levels a side."),
            ),
        ),
    )
    return Section(key="reach", title="Ranges", items=(lines,))


def _channels(ranges: Ranges, outliers: dict[str, float]) -> Section:
    order = sorted(outliers, key=lambda name: -outliers[name])
    rows = []
    for name in order:
        maxima = ranges.tensors[name + CHANNEL_MAXIMA]
        rows.append((_named(name), float(np.median(maxima)), float(maxima.max()), int(maxima.argmax()), outliers[name]))
    shown = [row for row in rows if row[1] > 0][:MOST_SPANS]
    spans = Spans(
        title="Channels that stand out",
        definition=f"Of each input, the median channel's largest magnitude and the largest channel's; the {len(shown)} "
        f"inputs of {len(rows)} where they are furthest apart.",
        alt=f"Furthest apart in the input of {rows[0][0]}: {figure(rows[0][4])} times, by channel {rows[0][3]}.",
        names=tuple(row[0] for row in shown),
        low=tuple(row[1] for row in shown),
        high=tuple(row[2] for row in shown),
        low_name="median channel",
        high_name="largest channel",
        value_name="largest magnitude",
        table=Table(
            title="The numbers behind it: every input",
            folded=True,
            rows=tuple(rows),
            columns=(
                Column(name="input of", numeric=False),
                Column(name="median", definition="The median over channels of their largest magnitudes."),
                Column(name="largest", definition="The largest channel's."),
                Column(name="channel", definition="Which channel that is."),
                Column(name="times", definition="Largest over median."),
            ),
        ),
    )
    return Section(key="outliers", title="Outliers", items=(spans,))


def _caches(ranges: Ranges) -> Section:
    layers = range(ranges.layers)
    series = tuple(
        Series(
            name=f"{kind}s",
            x=tuple(map(float, layers)),
            y=tuple(ranges.threshold(kv_name(layer, kind), "min_max") for layer in layers),
        )
        for kind in (KEY, VALUE)
    )
    most = max(y or 0.0 for one in series for y in one.y)
    lines = Lines(
        title="Keys and values",
        definition="The largest magnitude of each layer's keys and values, as the cache keeps them.",
        alt=f"The furthest is {figure(most)}.",
        series=series,
        x_name="layer",
        y_name="largest magnitude",
        floor=1e-6,
        table=Table(
            title="The numbers behind it: keys and values",
            folded=True,
            columns=(Column(name="layer"), *(Column(name=one.name) for one in series)),
            rows=tuple((layer, *(one.y[layer] for one in series)) for layer in layers),
        ),
    )
    return Section(key="caches", title="What the cache holds", items=(lines,))


def _written(ranges: Ranges) -> list[Fact]:
    """Of the folder, and of what was read for it."""
    corpus = ranges.manifest["corpus"]
    total = sum(path.stat().st_size for path in ranges.folder.iterdir())
    return [
        Fact(name="written to", value=f"{ranges.folder} ({size(total)})"),
        Fact(name="rounded for", value=str(ranges.manifest.get("rounded_for") or "no recipe")),
        Fact(name="corpus", value=corpus_line(corpus)),
    ]
