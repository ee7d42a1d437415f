"""OpenVINO GenAI's pipeline over models that optimum-intel exported and NNCF compressed.

    python benchmarks/peers/openvino_genai.py install --work DIR
    python benchmarks/peers/openvino_genai.py convert --work DIR --checkpoint CKPT --form int8
    python benchmarks/peers/openvino_genai.py measure --work DIR --checkpoint CKPT --form int8

Each form is measured in OpenVINO's own precision for the machine (bfloat16 where it has instructions for it), which
wins reading, and with a float32 hint (``-f32``), which may win writing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

# At the end of the path: this file is named as the package it measures, and the package must be found first.
sys.path.append(str(Path(__file__).parent))

from protocol import THREADS, TORCH, Form, Generate, Peer, main

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
FORMS = {
    "fp16": Form(16, "fp16"), "int8": Form(8, "int8"), "int8-f32": Form(8, "int8", FLOAT32),
    "int4": Form(4, "int4"), "int4-f32": Form(4, "int4", FLOAT32),
}  # fmt: skip


def convert(checkpoint: Path, out: Path, model: str) -> None:
    """Export and compress."""
    part = out.with_name(out.name + ".part")
    command: list[str | Path] = [
        Path(sys.executable).with_name("optimum-cli"),
        "export",
        "openvino",
        "--model",
        checkpoint,
    ]
    command += ["--task", "text-generation-with-past", "--weight-format", model, part]
    subprocess.run(command, check=True, stdout=sys.stderr)
    os.rename(part, out)


def load(model: Path, form: Form) -> Generate:
    """The pipeline; tokens are timed as they reach its streamer."""
    import numpy as np
    import openvino
    import openvino_genai

    settings = {"INFERENCE_NUM_THREADS": THREADS, **form.settings}
    pipeline = openvino_genai.LLMPipeline(str(model), "CPU", **settings)

    def generate(ids: list[int], count: int) -> list[float]:
        times: list[float] = []
        # Every token counts, the end of a text included.
        config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)

        class Clock(openvino_genai.StreamerBase):
            def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
                written = time.perf_counter() - started
                times.extend([written] * (len(token) if isinstance(token, list) else 1))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        tokens = openvino_genai.TokenizedInputs(
            openvino.Tensor(np.array([ids], np.int64)), openvino.Tensor(np.ones((1, len(ids)), np.int64))
        )
        started = time.perf_counter()
        pipeline.generate(tokens, config, Clock())
        return times

    return generate


PEER = Peer(
    name="openvino_genai",
    # 2.1 of optimum-intel with 4.57 of transformers: 2.2 pulls torchvision and CUDA.
    packages=("openvino-genai==2026.4.*", "optimum-intel==2.1.0", "transformers>=4.57,<4.58", "nncf", TORCH),
    forms=FORMS,
    convert=convert,
    load=load,
)

if __name__ == "__main__":
    main(PEER)
