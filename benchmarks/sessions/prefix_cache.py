"""What a growing cache costs a prefix family in a decode step, and what one buffer does: tokens a second, bytes copied.

    python benchmarks/sessions/prefix_cache.py --work DIR [--shape medium-prefix] [--recipe int8-weights]
                                               [--context 128 512 2048] [--program NAME=FOLDER ...]

Makes a random checkpoint of ChatGLM-6B's layout and its programs under DIR once: ``onnx`` has a growing cache, ``ort``
one buffer. ``--program`` adds folders made elsewhere, by an earlier version above all. Then blanks are filled: a
context is read at once and tokens are written behind it. All programs take turns, round by round, and medians are
printed. Copied are keys and values that a step puts out elsewhere than where it read them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.onnxruntime.session import OrtSession

ROUNDS, STEPS, WARM_UP = 3, 16, 3
MAKE = Path(__file__).resolve().parents[1] / "make_checkpoint.py"


def programs(work: Path, shape: str, recipe: str | None) -> dict[str, OnnxProgram]:
    """Of both dialects, by name; those that are there are not made again."""
    checkpoint = work / shape
    if not checkpoint.is_dir():
        subprocess.run([sys.executable, str(MAKE), shape, str(checkpoint)], check=True)
    made = {}
    for dialect in ("onnx", "ort"):
        folder = work / f"{shape}-{dialect}-{recipe or 'float32'}"
        if not folder.is_dir():
            api.export(checkpoint, folder, dialect=dialect, dtype="float32", recipe=recipe, logits="last")
        made[dialect] = load_program(folder)
    return made


def fill(session: OrtSession, context: int) -> tuple[float, float, int]:
    """Seconds to the first token and of a later one's step, and bytes of keys and values a step copies."""
    ids = tuple(range(5, 5 + context + 1))
    feeds = session.feeds([Prompt(ids=ids, context_length=context, mask_position=context // 2)])
    began = time.perf_counter()
    logits = session.prefill(feeds)
    first, taken, copied = time.perf_counter() - began, [], 0
    for _ in range(WARM_UP + STEPS):
        feeds = feeds.next_step(logits[:, -1].argmax(axis=-1).tolist(), session.last_position(feeds))
        session.cache.make_room(feeds.columns)
        before = {value.data_ptr() for value in session.cache._values}
        began = time.perf_counter()
        logits = session.decode(feeds)
        taken.append(time.perf_counter() - began)
        moved = [value for value in session.cache._values if value.data_ptr() not in before]
        copied = sum(value.numpy().nbytes for value in moved)
    return first, statistics.median(taken[WARM_UP:]), copied


def main() -> None:
    """Make, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--shape", default="medium-prefix")
    options.add_argument("--recipe", default=None)
    options.add_argument("--context", type=int, nargs="+", default=[128, 512, 2048])
    options.add_argument("--program", nargs="*", default=[])
    arguments = options.parse_args()
    given = dict(named.split("=", 1) for named in arguments.program)
    found = programs(arguments.work, arguments.shape, arguments.recipe)
    found |= {name: load_program(Path(folder)) for name, folder in given.items()}
    print("| context | program | first token, s | decode, tokens/s | copied a step, MB |\n|---|---|---|---|---|")
    sessions = {name: OrtSession(program) for name, program in found.items()}
    for context in arguments.context:
        rounds = [{name: fill(session, context) for name, session in sessions.items()} for _ in range(ROUNDS)]
        for name in sessions:
            first, step = (statistics.median(one[name][part] for one in rounds) for part in (0, 1))
            copied = rounds[0][name][2] / 1e6
            print(f"| {context} | {name} | {first:.2f} | {1 / step:.1f} | {copied:.1f} |", flush=True)


if __name__ == "__main__":
    main()
