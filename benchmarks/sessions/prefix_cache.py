"""What a growing cache costs a prefix family in a decode step, and what one buffer does: tokens a second, bytes copied.

    python benchmarks/sessions/prefix_cache.py --work DIR [--shape medium-prefix] [--recipe int8-weights]
                                               [--context 128 512 2048] [--program NAME=FOLDER ...] [--threads 1]

Makes a random checkpoint of ChatGLM-6B's layout and its programs under DIR once: ``ort`` has one buffer, and in float32
``onnx`` a growing cache beside it. ``--program`` adds folders made elsewhere, by an earlier version above all. Then
blanks are filled: a context is read at once and tokens are written behind it, all programs in turn, token by token.
Rates are of the median step and of the slowest of the fastest tenth: on a machine with other work that one, and one
thread, are nearer to a quiet one's. Copied are keys and values that a step puts out elsewhere than where it read them.
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
from glm_export.exporter.options import ExportOptions
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.onnxruntime.session import OrtSession

STEPS, WARM_UP = 80, 3
MAKE = Path(__file__).resolve().parents[1] / "make_checkpoint.py"


def programs(work: Path, shape: str, recipe: str | None) -> dict[str, OnnxProgram]:
    """By dialect; those that are there are not made again."""
    checkpoint = work / shape
    if not checkpoint.is_dir():
        subprocess.run([sys.executable, str(MAKE), shape, str(checkpoint)], check=True)
    made = {}
    # Quantized, ``onnx`` says other operators: its steps would show those.
    for dialect in ("onnx", "ort") if recipe is None else ("ort",):
        folder = work / f"{shape}-{dialect}-{recipe or 'float32'}"
        if not folder.is_dir():
            api.export(
                checkpoint, folder, ExportOptions(dialect=dialect, dtype="float32", recipe=recipe, logits="last")
            )
        made[dialect] = load_program(folder)
    return made


class Filling:
    """A blank that a session fills: its context is read, and tokens are written behind it.

    ``first``: seconds to the first token. ``steps``: seconds of each later one. ``copied``: bytes of keys and values
    that the last step put out elsewhere than where it read them.
    """

    def __init__(self, session: OrtSession, context: int) -> None:
        self._session, ids = session, tuple(range(5, 5 + context + 1))
        self._feeds = session.feeds([Prompt(ids=ids, context_length=context, mask_position=context // 2)])
        began = time.perf_counter()
        self._logits = session.prefill(self._feeds)
        self.first, self.copied = time.perf_counter() - began, 0
        self.steps: list[float] = []

    def step(self) -> None:
        """One token more."""
        chosen = self._logits[:, -1].argmax(axis=-1).tolist()
        feeds = self._feeds.next_step(chosen, self._session.last_position(self._feeds))
        self._session.cache.make_room(feeds.columns)
        read = {value.data_ptr() for value in self._session.cache._values}
        began = time.perf_counter()
        self._logits = self._session.decode(feeds)
        self.steps.append(time.perf_counter() - began)
        moved = [value for value in self._session.cache._values if value.data_ptr() not in read]
        self._feeds, self.copied = feeds, sum(value.numpy().nbytes for value in moved)


def main() -> None:
    """Make, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--shape", default="medium-prefix")
    options.add_argument("--recipe", default=None)
    options.add_argument("--context", type=int, nargs="+", default=[128, 512, 2048])
    options.add_argument("--program", nargs="*", default=[])
    options.add_argument("--threads", type=int, default=None)
    arguments = options.parse_args()
    given = dict(named.split("=", 1) for named in arguments.program)
    found = programs(arguments.work, arguments.shape, arguments.recipe)
    found |= {name: load_program(Path(folder)) for name, folder in given.items()}
    print("| context | program | first token, s | tokens/s, median | fastest tenth | copied a step, MB |")
    print("|---|---|---|---|---|---|")
    sessions = {name: OrtSession(program, threads=arguments.threads) for name, program in found.items()}
    for context in arguments.context:
        fillings = {name: Filling(session, context) for name, session in sessions.items()}
        for _ in range(WARM_UP + STEPS):
            for filling in fillings.values():
                filling.step()
        for name, filling in fillings.items():
            steps = sorted(filling.steps[WARM_UP:])
            median, fast = 1 / statistics.median(steps), 1 / steps[len(steps) // 10]
            rates, copied = f"{filling.first:.1f} | {median:.1f} | {fast:.1f}", f"{filling.copied / 1e6:.1f}"
            print(f"| {context} | {name} | {rates} | {copied} |", flush=True)


if __name__ == "__main__":
    main()
