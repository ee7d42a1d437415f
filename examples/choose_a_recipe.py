"""Which recipe is good enough, and smallest: calibrate on texts that are at hand, export, measure, choose.

python examples/choose_a_recipe.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

from glm_export import calibrate, export, quality
from glm_export.embedded import poems
from glm_export.exporter.options import ExportOptions

RECIPES = ("int8-token", "int8-smoothquant", "int4-weights")
LIMIT = 0.0005
"""Of the Kullback-Leibler divergence, nats a token."""


def main(checkpoint: str = "demo") -> None:
    texts = ["\n".join(poem.lines) for poem in poems()[:48]]
    good: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        ranges = calibrate(checkpoint, f"{folder}/ranges", corpus=texts[:16])
        for recipe in RECIPES:
            options = ExportOptions(recipe=recipe, ranges=ranges)
            program = export(checkpoint, f"{folder}/{recipe}", options)
            report = quality(program, checkpoint, corpus=texts[16:]).report
            megabytes = program.manifest["sizes"]["model.onnx.data"] / 1e6
            print(f"{recipe:18} {megabytes:6.1f} MB  KL {report.kl:.1e}  same top token {report.top1:.1%}")
            if report.kl <= LIMIT:
                good[recipe] = megabytes
    print(f"smallest within {LIMIT}: {min(good, key=good.__getitem__)}" if good else f"none is within {LIMIT}")


if __name__ == "__main__":
    main(*sys.argv[1:])
