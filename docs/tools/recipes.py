"""The picture of what each recipe costs and gives: ``docs/images/recipes.svg``.

    python docs/tools/recipes.py --work DIR --out docs/images/recipes.svg

Exports the embedded model by every recipe of dialect ``ort``, measures each with ``quality`` and ``bench``, and draws
what they found with ``plot``. Minutes. The model is small: its sizes and KL are what recipes do to it, its speeds are
those of this machine and mostly what the host does between products.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glm_export import api, bench
from glm_export.calibration import recipes
from glm_export.exporter.options import dialects_of
from glm_export.reports.pictures.plot import plot

MODEL, CORPUS, SAMPLES = "demo", "poems", 64


def measured(recipe: str | None, work: Path) -> tuple[float, list[Path]]:
    """KL, and the folder and files that ``plot`` takes."""
    chosen = recipes.load(recipe) if recipe else None
    ranges = None
    if chosen is not None and chosen.needs != "nothing":
        own = recipe if chosen.rounding != "nearest" else None
        ranges = work / f"ranges{'-' + own if own else ''}"
        if not ranges.exists():
            api.calibrate(MODEL, ranges, corpus=CORPUS, recipe=own)
    folder = work / (recipe or "float32")
    program = api.export(MODEL, folder, dialect="ort", recipe=recipe, ranges=ranges, force=True)
    verdict = api.quality(program, MODEL, corpus=CORPUS, max_samples=SAMPLES)
    found = bench(folder, rounds=3)
    files = [work / f"{folder.name}.quality.json", work / f"{folder.name}.bench.json"]
    for file, values in zip(files, (verdict.to_json(), found.to_json()), strict=True):
        file.write_text(json.dumps(values, indent=1))
    return verdict.report.kl, [folder, *files]


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = [name for name in recipes.names() if name != "keep" and "ort" in dialects_of(recipes.load(name))]
    found = [measured(name, arguments.work) for name in (None, *known)]
    sources = [path for _, paths in sorted(found, key=lambda one: one[0]) for path in paths]
    for suffix in (arguments.out.suffix, ".csv"):
        plot(sources, arguments.out.with_suffix(suffix), force=True)


if __name__ == "__main__":
    main()
