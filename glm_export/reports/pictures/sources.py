"""What a picture is made of: folders that verbs wrote, and the JSON that they print or put beside a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_export.artifacts.open import Kind, kind_of
from glm_export.calibration.ranges import CHANNEL_MAXIMA, load_ranges
from glm_export.errors import InputError, reason
from glm_export.model_folder import load_json

NUMBERS = {
    "bench": ("prefill_tokens_s", "decode_tokens_s", "first_token_s", "peak_anonymous_bytes"),
    "quality": ("kl", "perplexity_ratio", "top1"),
}
"""Of a verb's JSON, what is compared; the first two tell the verb."""
NOT_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


@dataclass(slots=True, kw_only=True)
class Measured:
    """One program: where it was found, and what is known of it. ``bytes``: all files of its folder."""

    name: str
    folder: Path | None = None
    bytes: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One input of a linear layer: its largest magnitude, what 99.99 % stay below, and its median channel's largest."""

    name: str
    largest: float
    percentile: float
    median_channel: float


@dataclass(slots=True, kw_only=True)
class Found:
    """Everything that was given. ``costs``: layer -> nats a token. ``estimated``: they were not measured."""

    programs: dict[str, Measured] = field(default_factory=dict)
    reaches: list[list[Reach]] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    estimated: bool = False


def read(sources: Sequence[Path]) -> Found:
    """Read folders and files.

    Args:
        sources: in the order in which they are to be shown.

    Raises:
        InputError: one is nothing that can be drawn, or two programs have one name.
        GlmExportError: a folder is damaged.
    """
    found = Found()
    for source in sources:
        if source.is_dir():
            _folder(found, source)
        else:
            _file(found, source)
    return found


def _folder(found: Found, source: Path) -> None:
    kind = kind_of(source)
    if kind is Kind.RANGES:
        ranges = load_ranges(source)
        found.reaches.append(
            [
                Reach(
                    name=name.removesuffix(".weight"),
                    largest=ranges.threshold(name, "min_max"),
                    percentile=ranges.threshold(name, "percentile"),
                    median_channel=_median(ranges.tensors[name + CHANNEL_MAXIMA]),
                )
                for name in ranges.inputs
            ]
        )
    elif kind in (Kind.PROGRAM, Kind.ENGINE):
        _program(found, source)
    else:
        told = kind.value if kind is not None else "nothing that glm-export wrote"
        raise InputError(f"{source} is {told}; plot takes exported folders, engines, ranges, and JSON of verbs")


def _median(values: Any) -> float:
    import numpy as np

    return float(np.median(values))


def _program(found: Found, folder: Path) -> Measured:
    """A program by its folder's name, with its size where the folder is there."""
    name = folder.resolve().name if str(folder) in (".", "..") else folder.name
    known = found.programs.setdefault(name, Measured(name=name))
    there = folder.is_dir() and kind_of(folder) in (Kind.PROGRAM, Kind.ENGINE)
    if there and known.folder is None:
        known.folder, known.bytes = folder, sum(_opened(folder).manifest["sizes"].values())
    elif there and known.folder is not None and not known.folder.samefile(folder):
        raise InputError(f"{known.folder} and {folder} have one name; give one of them another to tell them apart")
    return known


def _opened(folder: Path) -> Any:
    from glm_export.api import open_exported

    return open_exported(folder)


def _file(found: Found, source: Path) -> None:
    try:
        values = load_json(source)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; give a folder, or JSON of a verb") from error
    verb = values.get("verb")
    own = values["measured"] if isinstance(values.get("measured"), Mapping) else values
    if "thresholds" in own and "outliers" in own:
        found.reaches.append(_told_reaches(source, own))
        return
    kind = next((kind for kind, names in NUMBERS.items() if all(name in own for name in names[:2])), None)
    if kind is None:
        told = f"a report of {verb}" if isinstance(verb, str) else "no JSON of a verb that measures"
        raise InputError(
            f"{source} is {told}; plot takes JSON of bench, quality and calibrate, printed with --json or beside "
            "a --report"
        )
    if kind == "quality" and own.get("costs"):
        found.costs.append({str(cost["weight"]).removesuffix(".weight"): _number(cost["kl"]) for cost in own["costs"]})
        found.estimated = found.estimated or any(cost.get("estimated") for cost in own["costs"])
    # What quality prints does not say of which program; its file does, up to the first dot.
    about = values.get("subject") or own.get("model") or source.name.partition(".")[0]
    program = _program(found, Path(str(about)))
    program.numbers |= {name: _number(own[name]) for name in NUMBERS[kind] if own.get(name) is not None}


def _told_reaches(source: Path, own: Mapping[str, Any]) -> list[Reach]:
    """Of a report of ``calibrate``, which knows how far each input's largest channel stands out."""
    try:
        return [
            Reach(
                name=name.removesuffix(".weight"),
                largest=_number(own["thresholds"][name]["min_max"]),
                percentile=_number(own["thresholds"][name]["percentile"]),
                median_channel=_number(own["thresholds"][name]["min_max"]) / _number(times),
            )
            for name, times in own["outliers"].items()
        ]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{source} is no whole report of calibrate ({reason(error)}); write it again") from error


def _number(value: Any) -> float:
    """A number of our JSON, which says what it has none for as a text."""
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"expected a number in a verb's JSON, found {str(value)[:40]!r}; write the file again")
    return float(value)
