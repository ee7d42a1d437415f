"""Exporting at full size: memory and wall time beside `cp` and onnxruntime-genai's builder, in one run.

    python benchmarks/export/run.py chatglm2-6b --work /tmp/export-benchmark --rounds 2 [--llama-cpp]

Makes a random float16 checkpoint of the shape in the layout all three can read, then runs each in turn, `--rounds`
times, and prints a table of medians. The builder lives in an environment of its own under `--work`. Needs three times
the checkpoint's size on disk. With `--llama-cpp` 4 bits as well: ours from the checkpoint, and llama.cpp's quantizer
from its own F16 file, which is written beforehand and takes the checkpoint's size once more.
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

from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "peers"))

from llama_cpp import PEER as LLAMA
from watch import Usage, watch

HERE = Path(__file__).parent
PEERS = HERE.parent / "peers"
BUILDER_PACKAGES = ("onnxruntime-genai==0.18.0", "onnx-ir", "transformers>=5,<6", "sentencepiece")


def make_checkpoint(shape: str, work: Path) -> Path:
    folder = work / f"{shape}-native"
    if not folder.exists():
        script = HERE.parent / "make_checkpoint.py"
        subprocess.run([sys.executable, script, f"{shape}-native", folder], check=True)
        # The builder copies a tokenizer; any will do.
        vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        Tokenizer(models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def make_builder(work: Path) -> Path:
    python = work / "builder-environment" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", work / "builder-environment"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torch>=2.11,<2.14", *BUILDER_PACKAGES], check=True)
    return python


def builders_view(checkpoint: Path, work: Path) -> Path:
    """The same files under an architecture name the builder knows: it has no branch for GlmForCausalLM."""
    view = work / f"{checkpoint.name}-for-builder"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir()
    for path in checkpoint.iterdir():
        (view / path.name).symlink_to(path)
    values = json.loads((checkpoint / "config.json").read_text())
    (view / "config.json").unlink()
    (view / "config.json").write_text(json.dumps(values | {"architectures": ["ChatGLMModel"]}))
    return view


def commands(checkpoint: Path, work: Path, builder: Path, llama: bool) -> dict[str, list[str]]:
    out = work / "out"
    glm_export = str(Path(sys.executable).with_name("glm-export"))
    module = f"{builder} -m onnxruntime_genai.models.builder"
    options = f"-i {builders_view(checkpoint, work)} -o {out} -p fp16 -e cuda -c {work / 'cache'}"
    return {
        "cp": ["sh", "-c", f"cp -rL {checkpoint} {out} && sync"],
        "glm-export": ["sh", "-c", f"{glm_export} export {checkpoint} --out {out} --dtype float16 && sync"],
        "onnxruntime-genai builder": ["sh", "-c", f"{module} {options} && sync"],
    } | (four_bits(checkpoint, work, f"{glm_export} export {checkpoint} --out {out}") if llama else {})  # fmt: skip


def four_bits(checkpoint: Path, work: Path, export: str) -> dict[str, list[str]]:
    """Ours from the checkpoint, llama.cpp's from its F16 file."""
    inside = f"--inside --work {work} --checkpoint {checkpoint} --form q4_0"
    quantize = f"{LLAMA.python(work)} -I {PEERS / 'llama_cpp.py'} convert {inside}"
    return {
        "glm-export, int4-weights": ["sh", "-c", f"{export} --dialect ort --recipe int4-weights && sync"],
        "llama.cpp's quantizer, Q4_0": ["sh", "-c", f"{quantize} && sync"],
    }


def make_llama(checkpoint: Path, work: Path) -> None:
    """Its environment, and the F16 file it quantizes."""
    where = ("--work", work, "--checkpoint", checkpoint)
    for command in (("install", "--work", work), ("convert", *where, "--form", "f16")):
        subprocess.run([sys.executable, PEERS / "llama_cpp.py", *command], check=True, stdout=sys.stderr)


def table(runs: dict[str, list[Usage]], shares: list[dict[str, float]]) -> str:
    def median(name: str, field: str) -> float:
        return statistics.median(float(getattr(usage, field)) for usage in runs[name])

    copy = median("cp", "wall_s")
    fields = ("wall_s", "cpu_s", "peak_anonymous_gb", "peak_file_gb")
    lines = [
        "| | wall s | × cp | CPU s | peak anonymous GB | peak file-backed GB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {wall:.1f} | {wall / copy:.2f} | {cpu:.1f} | {anonymous:.2f} | {file:.2f} |"
            for name in runs
            for wall, cpu, anonymous, file in [[median(name, field) for field in fields]]
        ),
    ]
    parts = ", ".join(f"{part} {statistics.median(s[part] for s in shares):.1f} s" for part in sorted(shares[0]))
    return "\n".join([*lines, "", f"Side by side within glm-export: {parts}."])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape", choices=("chatglm2-6b", "medium"))
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--llama-cpp", action="store_true", help="4 bits as well, beside llama.cpp's quantizer")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint, builder = make_checkpoint(arguments.shape, arguments.work), make_builder(arguments.work)
    if arguments.llama_cpp:
        make_llama(checkpoint, arguments.work)
    runs: dict[str, list[Usage]] = defaultdict(list)
    shares: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        for name, command in commands(checkpoint, arguments.work, builder, arguments.llama_cpp).items():
            shutil.rmtree(arguments.work / "out", ignore_errors=True)
            LLAMA.model(arguments.work, checkpoint, "q4_0").unlink(missing_ok=True)
            os.sync()
            usage = watch(command)
            if usage.exit_code:
                sys.exit(f"{name} failed with exit code {usage.exit_code}")
            print(f"{name}: {usage.wall_s} s, {usage.peak_anonymous_gb} GB anonymous", flush=True)
            runs[name].append(usage)
            if name == "glm-export":
                shares.append(json.loads((arguments.work / "out" / "manifest.json").read_text())["seconds"])
    shutil.rmtree(arguments.work / "out", ignore_errors=True)
    print(table(runs, shares))


if __name__ == "__main__":
    main()
