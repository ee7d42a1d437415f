"""onnxruntime-genai: its model builder and its generator.

python benchmarks/peers/onnxruntime_genai.py install --work DIR
python benchmarks/peers/onnxruntime_genai.py convert --work DIR --checkpoint CKPT --form int8
python benchmarks/peers/onnxruntime_genai.py measure --work DIR --checkpoint CKPT --form int8
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# At the end of the path: this file is named as the package it measures, and the package must be found first.
sys.path.append(str(Path(__file__).parent))

from protocol import CONTEXT, NEW_TOKENS, PROMPT_TOKENS, THREADS, TORCH, Form, Generate, Peer, main

BUILDER_OPTIONS = {
    # Only the last row of logits; accuracy level 4 computes with 8-bit activations.
    "fp32": ["prune_lm_head=true"],
    "int8": ["accuracy_level=4", "block_size=32", "prune_lm_head=true"],
    "int8-block128": ["accuracy_level=4", "block_size=128", "prune_lm_head=true"],
    "int4": ["accuracy_level=4", "block_size=32", "prune_lm_head=true"],
    "int4-block128": ["accuracy_level=4", "block_size=128", "prune_lm_head=true"],
}
FORMS = {
    name: Form({"fp32": 32, "int8": 8, "int4": 4}[name.removesuffix("-block128")], name) for name in BUILDER_OPTIONS
}


def convert(checkpoint: Path, out: Path, model: str) -> None:
    """Run the builder on a view of the checkpoint under an architecture name it knows."""
    part = out.with_name(out.name + ".part")
    with tempfile.TemporaryDirectory() as folder:
        for path in checkpoint.iterdir():
            (Path(folder) / path.name).symlink_to(path.resolve())
        values = json.loads((checkpoint / "config.json").read_text())
        (Path(folder) / "config.json").unlink()
        (Path(folder) / "config.json").write_text(json.dumps(values | {"architectures": ["ChatGLMModel"]}))
        command: list[str | Path] = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", part]
        command += ["-p", model.removesuffix("-block128"), "-e", "cpu", "-c", Path(folder) / "cache"]
        subprocess.run([*command, "--extra_options", *BUILDER_OPTIONS[model]], check=True, stdout=sys.stderr)
    os.rename(part, out)


def load(model: Path, form: Form) -> Generate:  # noqa: ARG001
    """Its generator, greedy, with the threads named: it takes one otherwise."""
    import numpy as np
    import onnxruntime_genai

    path = model / "genai_config.json"
    values = json.loads(path.read_text())
    options = values["model"]["decoder"]["session_options"]
    if options.get("intra_op_num_threads") != THREADS:
        options["intra_op_num_threads"] = THREADS
        path.write_text(json.dumps(values, indent=4))
    network = onnxruntime_genai.Model(str(model))

    def generate(ids: list[int], count: int) -> list[float]:
        settings = onnxruntime_genai.GeneratorParams(network)
        # No end-of-text token may end it before the count.
        longest = max(PROMPT_TOKENS, CONTEXT + NEW_TOKENS) + 64
        settings.set_search_options(max_length=longest, min_length=longest, do_sample=False, batch_size=1)
        generator = onnxruntime_genai.Generator(network, settings)
        times: list[float] = []
        started = time.perf_counter()
        generator.append_tokens(np.array([ids], np.int32))
        for _ in range(count):
            generator.generate_next_token()
            times.append(time.perf_counter() - started)
        return times

    return generate


PEER = Peer(
    name="onnxruntime_genai",
    packages=("onnxruntime-genai==0.18.0", "onnx-ir", "transformers>=5,<6", "sentencepiece", TORCH),
    forms=FORMS,
    convert=convert,
    load=load,
)

if __name__ == "__main__":
    main(PEER)
