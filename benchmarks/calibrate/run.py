"""Memory of calibrating and quantizing a model of full size, layer by layer.

    python benchmarks/calibrate/run.py CHECKPOINT --work /tmp/calibrate --rows 4 --tokens 256

CHECKPOINT is one of `benchmarks/make_checkpoint.py`: random weights, so the text is random ids too. What is measured
is memory and time, not quality. Prints the peak of anonymous memory within each layer, then that of an export with
int8-smoothquant from the ranges.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from watch import memory, tree, watch

SCRIPT = """
import sys
from pathlib import Path
from glm_export import api
checkpoint = api.open_checkpoint(sys.argv[1])
import json
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.inputs.prompts import Prompt
rows = json.loads(Path(sys.argv[2]).read_text())
samples = tuple(Sample(prompt=Prompt(ids=tuple(ids)), counted_from=1) for ids in rows)
corpus = Corpus(name="random ids", origin="seed 0", licence="none", sha256="0", samples=samples)
api.calibrate(checkpoint, sys.argv[3], corpus=corpus, recipe=sys.argv[4] or None, force=True)
"""


def calibrate(checkpoint: Path, work: Path, rows: int, tokens: int, recipe: str) -> tuple[list[float], float]:
    """Peak anonymous gigabytes within each layer, and seconds in all."""
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, tokens)).tolist()
    (work / "ids.json").write_text(json.dumps(ids))
    out = work / "ranges"
    arguments = [str(checkpoint), str(work / "ids.json"), str(out), recipe]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
    peaks: list[float] = []
    while process.poll() is None:
        layer = len(list((work / ".ranges.work").glob("layer-*.safetensors")))
        peaks += [0.0] * (layer + 1 - len(peaks))
        peaks[layer] = max(peaks[layer], sum(memory(pid)[0] for pid in tree(process.pid)) * 1024 / 1e9)
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"calibrating failed with exit code {process.returncode}")
    return peaks, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--recipe", default="", help="int4-gptq also rounds weights while calibrating")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    peaks, seconds = calibrate(arguments.checkpoint, arguments.work, arguments.rows, arguments.tokens, arguments.recipe)
    print("layer  peak anonymous GB")
    most = max(peaks)
    for layer, peak in enumerate(peaks):
        print(f"{layer:5}  {peak:5.2f}  {'#' * round(40 * peak / most)}")
    inner = peaks[1:-2]
    print(f"calibrated in {seconds:.0f} s; peak {most:.2f} GB")
    if inner:
        print(f"inner layers: {min(inner):.2f} to {max(inner):.2f} GB, median {statistics.median(inner):.2f}")
    recipe = arguments.recipe or "int8-smoothquant"
    program = Path(sys.executable).with_name("glm-export")
    options = ["--out", str(arguments.work / "program"), "--dialect", "tensorrt", "--dtype", "float16", "--force"]
    ranges = ["--recipe", recipe, "--ranges", str(arguments.work / "ranges")]
    usage = watch([str(program), "export", str(arguments.checkpoint), *options, *ranges])
    print(f"exported with {recipe}: {usage.wall_s:.0f} s, {usage.peak_anonymous_gb:.2f} GB anonymous")


if __name__ == "__main__":
    main()
