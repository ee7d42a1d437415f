"""Building engines at full size: memory and wall time beside Polygraphy's own conversion of the same program.

    python benchmarks/engines/run.py glm-edge-1.5b --work /tmp/engine-benchmark

Makes a random checkpoint of the shape, exports it in the dialect `tensorrt`, and builds it with TensorRT-RTX, which
needs no GPU. `polygraphy convert` builds the same program with the same two profiles: the difference is what we do
around the builder. Needs four times the checkpoint's size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from watch import Usage, watch

from glm_export.artifacts.program import load_program
from glm_export.engines.profiles import profiles_of, resolve_limits
from glm_export.spec.optimization_profile import OptimizationProfile

HERE = Path(__file__).parent
GLM_EXPORT = str(Path(sys.executable).with_name("glm-export"))
POLYGRAPHY = str(Path(sys.executable).with_name("polygraphy"))
FLOAT = "float16"
RECIPES = (FLOAT, "int8-weights", "int4-weights")
MAX_BATCH, PREFILL_TOKENS = 4, 512


def export(shape: str, recipe: str, work: Path) -> Path:
    checkpoint, program = work / shape, work / f"{shape}-{recipe}"
    if not checkpoint.exists():
        subprocess.run([sys.executable, HERE.parent / "make_checkpoint.py", shape, checkpoint], check=True)
    chosen = [] if recipe == FLOAT else ["--recipe", recipe]
    command = [GLM_EXPORT, "export", str(checkpoint), "--out", str(program), "--dialect", "tensorrt", "--force"]
    subprocess.run([*command, "--dtype", "float16", "--max-length", "8192", *chosen], check=True)
    return program


def polygraphys(program: Path, work: Path) -> list[str]:
    """The same build without us: Polygraphy's command line, which knows the package by another name."""
    (work / "shim").mkdir(exist_ok=True)
    (work / "shim" / "tensorrt_rtx.py").write_text(
        "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
    )
    opened = load_program(program)
    limits = resolve_limits(
        opened.signature, opened.config.max_positions, max_batch=MAX_BATCH, prefill_tokens=PREFILL_TOKENS
    )
    command = [
        POLYGRAPHY,
        "convert",
        str(program / "model.onnx"),
        "--convert-to",
        "trt",
        "-o",
        str(work / "theirs.plan"),
    ]
    for profile in profiles_of(opened.signature, limits):
        command += shapes(profile)
    return command


def shapes(profile: OptimizationProfile) -> list[str]:
    """A profile as Polygraphy's options."""
    options = []
    for index, option in enumerate(("--trt-min-shapes", "--trt-opt-shapes", "--trt-max-shapes")):
        corner = {name: corners[index] for name, corners in profile.shapes.items()}
        options += [option, *(f"{name}:{str(list(shape)).replace(' ', '')}" for name, shape in corner.items())]
    return options


def measured(recipe: str, program: Path, work: Path) -> dict[str, Usage]:
    out = work / "ours"
    ours = [GLM_EXPORT, "build", str(program), "--out", str(out), "--runtime", "tensorrt-rtx", "--force"]
    ours += ["--max-batch", str(MAX_BATCH), "--prefill-tokens", str(PREFILL_TOKENS)]
    found = {f"glm-export build, {recipe}": watch(ours)}
    engine = json.loads((out / "engine.json").read_text())
    print(json.dumps({"recipe": recipe, "memory": engine["memory"], "seconds": engine["seconds"]}))
    shutil.rmtree(out)
    os.environ |= {"POLYGRAPHY_USE_TENSORRT_RTX": "1", "PYTHONPATH": str(work / "shim")}
    found[f"polygraphy convert, {recipe}"] = watch(polygraphys(program, work))
    (work / "theirs.plan").unlink(missing_ok=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape")
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| | wall s | CPU s | peak anonymous GB | peak file-backed GB |\n|---|---|---|---|---|")
    for recipe in arguments.recipes:
        program = export(arguments.shape, recipe, arguments.work)
        for name, usage in measured(recipe, program, arguments.work).items():
            verdict = "" if usage.exit_code == 0 else f" (exit code {usage.exit_code})"
            memory = f"{usage.peak_anonymous_gb:.2f} | {usage.peak_file_gb:.2f}"
            print(f"| {name}{verdict} | {usage.wall_s:.1f} | {usage.cpu_s:.1f} | {memory} |", flush=True)
        shutil.rmtree(program)


if __name__ == "__main__":
    main()
