"""Quantizing while exporting, beside llama.cpp's quantizer: wall time and memory, in one run.

    python benchmarks/quantize/run.py chatglm2-6b --work /tmp/peers --rounds 2

Makes a random float16 checkpoint of the shape and its F16 GGUF file, which llama.cpp's quantizer starts from (writing
it is not counted), then runs each recipe and each of llama.cpp's types in turn, `--rounds` times, and prints medians.
llama.cpp lives in an environment of its own under `--work` (`benchmarks/peers/llama_cpp.py`). Needs 35 GB of disk for
chatglm2-6b.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from watch import watch

HERE = Path(__file__).parent
LLAMA_CPP = HERE.parent / "peers" / "llama_cpp.py"
RECIPES = ("int4-weights", "int8-weights", "int8-dynamic")
TYPES = ("q4_0", "q8_0")
Runs = dict[str, list[tuple[float, float]]]
"""Wall seconds and peak anonymous GB of each run."""


def llama_cpp(command: str, work: Path, checkpoint: Path, form: str) -> dict[str, float]:
    arguments: list[str | Path] = ["--work", work, "--checkpoint", checkpoint, "--form", form]
    done = subprocess.run(
        [sys.executable, LLAMA_CPP, command, *arguments, *(["--again"] if form in TYPES else [])],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    line = done.stdout.strip().splitlines()[-1:]
    facts: dict[str, float] = json.loads(line[0]) if line else {}
    return facts


def export(checkpoint: Path, out: Path, recipe: str) -> tuple[float, float]:
    shutil.rmtree(out, ignore_errors=True)
    command = Path(sys.executable).with_name("glm-export")
    options = f"--out {out} --dialect ort --recipe {recipe}"
    usage = watch(["sh", "-c", f"{command} export {checkpoint} {options} && sync"])
    if usage.exit_code:
        sys.exit(f"exporting with {recipe} failed with exit code {usage.exit_code}")
    shutil.rmtree(out)
    return usage.wall_s, usage.peak_anonymous_gb


def table(runs: Runs) -> str:
    def median(name: str, place: int) -> float:
        return statistics.median(run[place] for run in runs[name])

    lines = ["| | wall s | × llama.cpp of as many bits | peak anonymous GB |", "|---|---|---|---|"]
    for name in runs:
        peer = f"llama.cpp {TYPES['8' in name]}"
        ratio = median(name, 0) / median(peer, 0)
        lines.append(f"| {name} | {median(name, 0):.1f} | {ratio:.2f} | {median(name, 1):.2f} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape", choices=("chatglm2-6b", "medium"))
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=2)
    arguments = options.parse_args()
    checkpoint = arguments.work / f"{arguments.shape}-native"
    if not checkpoint.exists():
        script = HERE.parent / "make_checkpoint.py"
        subprocess.run([sys.executable, script, checkpoint.name, checkpoint], check=True)
    subprocess.run(
        [sys.executable, HERE.parent / "peers" / "llama_cpp.py", "install", "--work", arguments.work], check=True
    )
    llama_cpp("convert", arguments.work, checkpoint, "f16")
    runs: Runs = defaultdict(list)
    for _ in range(arguments.rounds):
        for recipe in RECIPES:
            os.sync()
            runs[f"glm-export {recipe}"].append(export(checkpoint, arguments.work / "quantized", recipe))
        for form in TYPES:
            os.sync()
            facts = llama_cpp("convert", arguments.work, checkpoint, form)
            runs[f"llama.cpp {form}"].append((facts["wall_s"], facts["peak_anonymous_gb"]))
        print(json.dumps(runs), file=sys.stderr, flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
