"""Memory and time of quality at full size: whole models, and one layer of each side at a time.

    python benchmarks/quality/full_size.py CHECKPOINT --work DIR --recipe int8-weights --rows 4 --tokens 256

CHECKPOINT is one of `benchmarks/make_checkpoint.py`: random weights, so the text is random ids too, and what is
measured is memory and time; that both ways say the same is printed beside them. The program is of dialect `ort` with
all logits. Each way runs in a process of its own, peaks are sampled every 10 ms (`benchmarks/watch.py`). `--costs` adds
what each layer's rounding costs, exactly (two whole models, a pass for every product) and estimated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from watch import watch

WAYS = ("whole models", "layer by layer")


def inside(way: str, asked: argparse.Namespace) -> None:
    """One way, in this process; figures go to a file."""
    from glm_export import api
    from glm_export.artifacts.program import load_program
    from glm_export.calibration.corpus.corpus import Corpus, Sample
    from glm_export.evaluation.layer_costs import costs_by_layer
    from glm_export.evaluation.layerwise.quality import measure_layer_by_layer
    from glm_export.evaluation.logits import row_logits
    from glm_export.evaluation.measure import compare_predictions, summed_up
    from glm_export.inputs.prompts import Prompt
    from glm_export.sessions.torch import TorchSession

    checkpoint = api.open_checkpoint(asked.checkpoint)
    random = np.random.default_rng(0)
    ids = random.integers(0, checkpoint.config.vocab_size, (asked.rows, asked.tokens)).tolist()
    samples = tuple(Sample(prompt=Prompt(ids=tuple(row)), counted_from=1) for row in ids)
    corpus = Corpus(name="random ids", origin="seed 0", licence="none", sha256="0", samples=samples)
    program = load_program(asked.work / "program")
    layered, found = WAYS.index(way.removeprefix("costs, ")) == 1, {}
    if way.startswith("costs"):
        costs = costs_by_layer(program, checkpoint, corpus, layer_by_layer=layered)
        found = {cost.weight: cost.kl for cost in costs}
    elif layered:
        found = measure_layer_by_layer(program, checkpoint, corpus).to_json()
    else:
        with TorchSession(checkpoint) as reference, api.load_session(program) as candidate:
            # As measure() does; it would ask for a tokenizer, which random weights have none of.
            prompts, first = [sample.prompt for sample in samples], [1] * len(samples)
            sides = (row_logits(side, prompts, first) for side in (reference, candidate))
            rows = zip(*sides, prompts, strict=True)
            figures = [compare_predictions(one, other, prompt.ids[1:]) for one, other, prompt in rows]
            statistics = summed_up(figures, range(len(figures)))["statistics"]
            found = {"kl": statistics.kl.value, "candidate_perplexity": statistics.candidate_perplexity.value}
    (asked.work / "found.json").write_text(json.dumps(found))


def told(way: str, found: dict[str, Any]) -> str:
    """What is compared between the ways."""
    if way.startswith("costs"):
        dearest = list(found)[:3]
        return f"sum {sum(found.values()):.3e}; " + ", ".join(f"{name} {found[name]:.1e}" for name in dearest)
    return f"KL {found['kl']:.6e}, perplexity {found['candidate_perplexity']:.7g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="int8-weights")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--only", nargs="+", help="ways, by their names")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        inside(asked.inside, asked)
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    if not (asked.work / "program").exists():
        from glm_export import api

        api.export(asked.checkpoint, asked.work / "program", dialect="ort", recipe=asked.recipe, logits="all")
    ways = [*WAYS, *(f"costs, {way}" for way in WAYS if asked.costs)]
    print("| way | peak anonymous GB | file-backed GB | s | CPU s | found |\n|---|---|---|---|---|---|")
    for way in asked.only or ways:
        usage = watch([sys.executable, __file__, *sys.argv[1:], "--inside", way])
        if usage.exit_code:
            sys.exit(f"{way} failed with exit code {usage.exit_code}")
        found = told(way, json.loads((asked.work / "found.json").read_text()))
        figures = f"{usage.peak_anonymous_gb:.2f} | {usage.peak_file_gb:.2f} | {usage.wall_s:.0f} | {usage.cpu_s:.0f}"
        print(f"| {way} | {figures} | {found} |", flush=True)


if __name__ == "__main__":
    main()
