"""What rounding each layer costs, estimated in the memory of one layer, beside the exact figure.

    python benchmarks/quality/estimated_costs.py demo demo-glm --work DIR --recipe int4-weights --max-samples 24

Prints the dearest layers of each model and recipe with both figures, and over all of them the rank correlation
(Spearman), the sum of the estimates over the exact sum, and how many layers each way leaves in float for a third of the
KL of everything rounded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from glm_export import api
from glm_export.calibration import recipes
from glm_export.evaluation.layer_costs import exclude_layers
from glm_export.graphs import dialects

SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", action="append", required=True, choices=recipes.names())
    parser.add_argument("--max-samples", type=int, default=24)
    asked = parser.parse_args()
    for model in asked.models:
        checkpoint = api.open_checkpoint(model)
        corpus = api.open_corpus("poems", checkpoint, max_samples=asked.max_samples)
        ranges = asked.work / f"{model}-ranges"
        if not ranges.exists():
            api.calibrate(model, ranges, corpus=corpus)
        for name in asked.recipe:
            recipe = recipes.load(name).carried_by(dialects.load("onnx").can)
            opened = api.open_ranges(ranges)
            assert opened is not None
            quantization = opened.quantization(recipe, "float32")
            sides, seconds, kept = [], [], []
            everything = exclude_layers(checkpoint, quantization, corpus, kl=1e9, layer_by_layer=True).kl
            for layered in (False, True):
                started = time.perf_counter()
                mixed = exclude_layers(checkpoint, quantization, corpus, kl=everything / 3, layer_by_layer=layered)
                seconds.append(time.perf_counter() - started)
                sides.append({cost.weight: cost.kl for cost in mixed.costs})
                kept.append(f"{len(mixed.excluded)} ({mixed.kl:.1e})")
            exact, found = sides
            print(f"\n`{model}`, `{name}`: everything rounded {everything:.2e}\n")
            print("| layer | exact | estimated | ratio |\n|---|---|---|---|")
            for weight in list(exact)[:SHOWN]:
                told = weight.removesuffix(".weight")
                print(f"| {told} | {exact[weight]:.1e} | {found[weight]:.1e} | {found[weight] / exact[weight]:.2f} |")
            ranks = [np.argsort(np.argsort([side[weight] for weight in exact])) for side in sides]
            correlation, total = float(np.corrcoef(ranks[0], ranks[1])[0, 1]), sum(found.values()) / sum(exact.values())
            print(
                f"\nSpearman {correlation:.2f} over {len(exact)} layers, sums {total:.2f}; left in float for a third: "
                f"{kept[0]} exactly, {kept[1]} by estimates; {seconds[0]:.0f} s, {seconds[1]:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
