"""Exporting an officially quantized checkpoint at full size beside a float16 one of the same shape, in one run.

    python benchmarks/export/quantized_source.py --work /tmp/quantized-source --rounds 2

Makes random checkpoints of ChatGLM2-6B's shape, float16 and int4 (``quantization_bit``), then exports each in turn to
float16 ONNX, `--rounds` times, and prints a table of medians. Needs 30 GB of disk.
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

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from make_checkpoint import SHAPES
from watch import Usage, watch

from glm_export import families

SHAPE = "chatglm2-6b"
QUANTIZED = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def make_int4(folder: Path) -> None:
    """One shard a layer, as large as the released one: codes of any value, and small scales."""
    values = SHAPES[SHAPE] | {"quantization_bit": 4}
    config = families.read_config(values)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    weight_map: dict[str, str] = {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    for rule in families.load(config.family).weight_map(config).rules:
        (name,), (shape,) = rule.sources, rule.shapes
        layer = name.split("layers.")[1].split(".")[0] if "layers." in name else name
        held = shards[f"model-{layer}.safetensors"]
        if name.endswith(QUANTIZED):
            rows, columns = shape
            held[name] = torch.randint(-128, 128, (rows, columns // 2), generator=generator, dtype=torch.int8)
            held[f"{name}_scale"] = torch.rand(rows, generator=generator).mul_(0.01).half()
        else:
            held[name] = torch.randn(shape, generator=generator).mul_(0.02).half()
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def make(work: Path) -> dict[str, Path]:
    folders = {"float16": work / SHAPE, "int4 (quantization_bit)": work / f"{SHAPE}-int4"}
    if not folders["float16"].exists():
        script = Path(__file__).parent.parent / "make_checkpoint.py"
        subprocess.run([sys.executable, script, SHAPE, folders["float16"]], check=True)
    if not folders["int4 (quantization_bit)"].exists():
        make_int4(folders["int4 (quantization_bit)"])
    return folders


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=2)
    arguments = options.parse_args()
    out = arguments.work / "out"
    folders, runs = make(arguments.work), defaultdict[str, list[Usage]](list)
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, folder in folders.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            usage = watch(
                [sys.executable, "-m", "glm_export.cli", "export", str(folder), "--out", str(out), "--dtype", "float16"]
            )
            if usage.exit_code:
                sys.exit(f"{name} failed with exit code {usage.exit_code}")
            print(f"{name}: {usage.wall_s} s, {usage.peak_anonymous_gb} GB anonymous", flush=True)
            runs[name].append(usage)
            parts[name].append(json.loads((out / "manifest.json").read_text())["seconds"])
    shutil.rmtree(out, ignore_errors=True)
    plain = statistics.median(usage.wall_s for usage in runs["float16"])
    print("| source | wall s | × float16 | CPU s | peak anonymous GB |", "|---|---|---|---|---|", sep="\n")
    for name, usages in runs.items():
        wall, cpu, memory = (
            statistics.median(float(getattr(usage, field)) for usage in usages)
            for field in ("wall_s", "cpu_s", "peak_anonymous_gb")
        )
        print(f"| {name} | {wall:.1f} | {wall / plain:.2f} | {cpu:.1f} | {memory:.2f} |")
    for name, seconds in parts.items():
        print(f"{name}:", {part: statistics.median(s[part] for s in seconds) for part in seconds[0]})


if __name__ == "__main__":
    main()
