"""A LoRA merged while it is exported: memory and wall time beside the plain export, in one run.

    python benchmarks/export/adapted.py --work /tmp/adapted --rounds 2

Makes a random float16 ChatGLM2-6B and a LoRA of rank 16 over every linear layer, then exports without and with it in
turn and prints medians. Needs 25 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from watch import Usage, watch

from glm_export.checkpoints.checkpoint import open_checkpoint

RANK = 16


def make_adapter(base: Path, folder: Path) -> Path:
    """For every linear layer of the base."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, shape in open_checkpoint(base).weight_map.expected.items():
        if ".layers." in name and name.endswith(".weight") and len(shape) == 2:
            rows, columns = shape
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def main() -> None:
    """Make, export in turn, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--shape", default="chatglm2-6b")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    base, out = arguments.work / arguments.shape, arguments.work / "out"
    if not base.exists():
        script = Path(__file__).parent.parent / "make_checkpoint.py"
        subprocess.run([sys.executable, script, arguments.shape, base], check=True)
    adapter = make_adapter(base, arguments.work / "lora")
    usual = [sys.executable, "-m", "glm_export.cli", "export", str(base), "--out", str(out), "--dtype", "float16"]
    found: dict[str, list[Usage]] = {"plain": [], "with LoRA": []}
    for _ in range(arguments.rounds):
        for name, more in (("plain", []), ("with LoRA", ["--adapter", str(adapter)])):
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            found[name].append(watch([*usual, *more]))
    shutil.rmtree(out, ignore_errors=True)
    print("| | wall s | CPU s | peak anonymous GB |\n|---|---|---|---|")
    for name, usages in found.items():
        medians = (
            statistics.median(getattr(u, key) for u in usages) for key in ("wall_s", "cpu_s", "peak_anonymous_gb")
        )
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


if __name__ == "__main__":
    main()
