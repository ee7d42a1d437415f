"""One decode step of a mixture of experts: bytes of weights and time, for each way to compute and store experts.

    python benchmarks/make_checkpoint.py experts DIR/checkpoint
    python benchmarks/sessions/experts.py DIR/checkpoint --work DIR

Exports what is not there yet, then loads one program after another and decodes with it. The floor is the bytes a step
reads over the memory's speed measured right before. On a machine with other work the least step says more than the
median. llama.cpp on the same checkpoint: ``benchmarks/peers/run.py experts``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.exporter.options import ExportOptions
from glm_export.graphs.weight_traffic import program_weight_traffic
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.machine.memory import read_bandwidth

FORMS = {
    "all experts, float32": ("onnx", None),
    "chosen, float32": ("ort", None),
    "chosen, 8 bits": ("ort", "int8-weights"),
    "chosen, 4 bits": ("ort", "int4-weights"),
}
THREADS, PROMPT, WARM_UP = 2, 16, 3


def exported(checkpoint: Path, work: Path, dialect: str, recipe: str | None) -> OnnxProgram:
    folder = work / f"{dialect}-{recipe or 'float32'}"
    if not folder.exists():
        api.export(checkpoint, folder, ExportOptions(dialect=dialect, recipe=recipe, logits="last"))
    return load_program(folder)


def steps(program: OnnxProgram, count: int) -> list[float]:
    """Seconds of each decode step of one row."""
    generator, config = random.Random(0), program.config
    ids = [generator.randrange(3, config.vocab_size) for _ in range(PROMPT)]
    times: list[float] = []
    with api.load_session(program) as session:
        feeds = prefill_feeds([Prompt(ids=tuple(ids))], config)
        session.prefill(feeds)
        for _ in range(WARM_UP + count):
            # A token of its own each time, as text has: the same one again would find its experts in the cache.
            feeds = feeds.next_step([generator.randrange(3, config.vocab_size)], config.max_positions - 1)
            started = time.perf_counter()
            session.decode(feeds)
            times.append(time.perf_counter() - started)
    return times[WARM_UP:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--steps", type=int, default=64)
    options.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS))
    arguments = options.parse_args()
    print("| experts | MB a step | least ms | median ms | floor ms | least over floor |", "|---" * 6 + "|", sep="\n")
    for name in arguments.only:
        program = exported(arguments.checkpoint, arguments.work, *FORMS[name])
        moved, speed = program_weight_traffic(program.model_path, 1), read_bandwidth(THREADS)
        times = steps(program, arguments.steps)
        floor = moved / speed if speed is not None else float("nan")
        print(
            f"| {name} | {moved / 1e6:.0f} | {1e3 * min(times):.1f} | {1e3 * statistics.median(times):.1f} | "
            f"{1e3 * floor:.1f} | {min(times) / floor:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
