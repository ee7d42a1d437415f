"""What every recipe costs the embedded models: the table of docs/quantization.md.

    python benchmarks/quality/run.py --work /tmp/quality

Calibrates each model on the poems, exports it by every recipe, and measures the program against PyTorch in float32 on
the same poems: the models know nothing else. A recipe runs in dialect `onnx` where it can, else in `ort`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from glm_export import api
from glm_export.calibration import recipes
from glm_export.calibration.options import CalibrationOptions
from glm_export.exporter.options import ExportOptions, dialects_of

MODELS = ("demo", "demo-glm")
CORPUS = "poems"


def measured(model: str, recipe: str | None, work: Path, *, smoothed: bool = False) -> dict[str, Any]:
    """The quality report of one recipe, and the size of its weights; ``smoothed``: with ranges it could do without."""
    ranges = None
    chosen = recipes.load(recipe) if recipe else None
    dialect = "onnx" if chosen is None or "onnx" in dialects_of(chosen) else "ort"
    if chosen is not None and (smoothed or chosen.needs != "nothing"):
        own = recipe if chosen.rounding != "nearest" else None
        ranges = work / f"{model}-ranges{'-' + own if own else ''}"
        if not ranges.exists():
            api.calibrate(model, ranges, CalibrationOptions(corpus=CORPUS, recipe=own))
    name = f"{recipe or 'float32'}{', smoothed' if smoothed else ''}"
    program = api.export(
        model, work / f"{model}-{name}", ExportOptions(dialect=dialect, recipe=recipe, ranges=ranges), force=True
    )
    verdict = api.quality(program, model, corpus=CORPUS)
    megabytes = program.manifest["sizes"]["model.onnx.data"] / 1e6
    return verdict.report.to_json() | {"recipe": name, "dialect": dialect, "megabytes": megabytes}


def row(report: dict[str, Any]) -> str:
    """One line of the table."""
    exact = f"{report['candidate_exact']} of {report['tasks']}"
    return (
        f"| `{report['recipe']}` | {report['dialect']} | {report['megabytes']:.1f} | {exact} | "
        f"{report['candidate_perplexity']:.4g} | {report['kl']:.1e} | {report['top1']:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", action="append", choices=recipes.names(), help="these alone (default: all)")
    arguments = parser.parse_args()
    work, chosen = arguments.work, [None, *(arguments.recipe or recipes.names())]
    forms = [(name, False) for name in chosen]
    forms += [(name, True) for name in chosen if name and recipes.load(name).smoothing_with_ranges]
    work.mkdir(parents=True, exist_ok=True)
    reports = {}
    for model in MODELS:
        reports[model] = [measured(model, name, work, smoothed=smoothed) for name, smoothed in forms]
        exact, perplexity = reports[model][0]["reference_exact"], reports[model][0]["reference_perplexity"]
        print(f"\n`{model}`; PyTorch, float32: {exact} exact, perplexity {perplexity:.4g}\n")
        print("| recipe | dialect | weights, MB | recalled | perplexity | KL, nats a token | same likeliest token |")
        print("|---|---|---|---|---|---|---|")
        for report in sorted(reports[model], key=lambda one: (one["recipe"] != "float32", one["kl"])):
            print(row(report))
    finite = json.dumps(reports, indent=1, default=str).replace("Infinity", str(math.inf))
    (work / "quality.json").write_text(finite)


if __name__ == "__main__":
    main()
