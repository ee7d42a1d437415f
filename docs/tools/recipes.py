"""The picture of what each recipe costs and gives: ``docs/images/recipes.svg``.

    python docs/tools/recipes.py --work DIR --out docs/images/recipes.svg

Exports the embedded model by every recipe of dialect ``ort``, measures each with ``quality`` and ``bench``, and draws
what they found with ``plot``. Minutes. The model is small: its sizes and KL are what recipes do to it, its speeds are
those of this machine and mostly what the host does between products; they are medians of 15 rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from glm_export import api, bench
from glm_export.calibration import recipes
from glm_export.calibration.options import CalibrationOptions
from glm_export.exporter.options import ExportOptions, dialects_of
from glm_export.reports.pictures.plot import plot

MODEL, CORPUS, SAMPLES = "demo", "poems", 64
PASSES, ROUNDS = 1, 15


def exported(recipe: str | None, work: Path) -> Path:
    """A program, and beside it what ``quality`` says; what lies there from before is kept."""
    folder = work / (recipe or "float32")
    told = work / f"{folder.name}.quality.json"
    if told.exists():
        return folder
    chosen = recipes.load(recipe) if recipe else None
    ranges = None
    if chosen is not None and chosen.needs != "nothing":
        own = recipe if chosen.rounding != "nearest" else None
        ranges = work / f"ranges{'-' + own if own else ''}"
        if not ranges.exists():
            api.calibrate(MODEL, ranges, CalibrationOptions(corpus=CORPUS, recipe=own))
    options = ExportOptions(dialect="ort", recipe=recipe, ranges=ranges)
    program = api.export(MODEL, folder, options, force=True)
    told.write_text(json.dumps(api.quality(program, MODEL, corpus=CORPUS, max_samples=SAMPLES).to_json(), indent=1))
    return folder


def fastest(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """One program after another, several times over; of each the figures of its fastest pass.

    Other work only ever slows a pass, and it comes and goes.
    """
    found: dict[Path, dict[str, Any]] = {}
    for _ in range(PASSES):
        for folder in folders:
            again = bench(folder, rounds=ROUNDS).to_json()
            best = found.setdefault(folder, again)
            for name in ("prefill_tokens_s", "decode_tokens_s"):
                best[name] = max(best[name], again[name])
    return found


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = [name for name in recipes.names() if name != "keep" and "ort" in dialects_of(recipes.load(name))]
    folders = [exported(name, arguments.work) for name in (None, *known)]
    for folder, values in fastest(folders).items():
        (arguments.work / f"{folder.name}.bench.json").write_text(json.dumps(values, indent=1))
    kl = {folder: json.loads((arguments.work / f"{folder.name}.quality.json").read_text())["kl"] for folder in folders}
    sources = [
        path
        for folder in sorted(folders, key=lambda one: float(kl[one]))
        for path in (folder, *(arguments.work / f"{folder.name}.{verb}.json" for verb in ("quality", "bench")))
    ]
    for suffix in (arguments.out.suffix, ".csv"):
        plot(sources, arguments.out.with_suffix(suffix), force=True)


if __name__ == "__main__":
    main()
