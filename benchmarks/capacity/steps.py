"""How long an engine's step takes, by rows that are written and tokens of prompts read in it.

    python benchmarks/capacity/steps.py MODEL --threads 1 --out steps.json

Each cell: rows decode behind 128 tokens of context each, and prompts of so many tokens more are read in the same step,
as the engine's own scheduler gives them; the median of ``--rounds`` such steps, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from glm_export import api
from glm_export.generation.sampling import Sampling
from glm_export.serving.engine import Engine
from glm_export.serving.request import Request
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.sessions.load import session_of

CONTEXT = 128
WARM_UP_S = 4.0
"""Until a process that was begun computes."""
SETTLED = 4
"""Steps in which rows that were just read come to decode as they go on to."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Seconds of a step: ``seconds[i][j]`` with ``rows[i]`` that decode and ``prompt_tokens[j]`` read besides.

    ``options``: of the engine's scheduler. ``crowded``: how many times as long a step takes where every processor of a
    machine has one. ``said``: of what, where and with how many threads, or by which formula.
    """

    rows: list[int]
    prompt_tokens: list[int]
    seconds: list[list[float]]
    options: dict[str, int]
    said: str
    crowded: float = 1.0

    def step_s(self, rows: int, prompt_tokens: int) -> float:
        """Between the cells that were measured, and on along the last ones beyond."""
        by_rows = [_between(prompt_tokens, self.prompt_tokens, line) for line in self.seconds]
        return max(0.0, _between(rows, self.rows, by_rows))

    def scheduler(self) -> SchedulerOptions:
        """Of an engine."""
        names = ("max_rows", "chunk_tokens", "step_tokens")
        rows, chunk, step = (self.options[name] for name in names)
        return SchedulerOptions(max_rows=rows, chunk_tokens=chunk, step_tokens=step)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_steps(path: Path) -> Steps:
    """What :meth:`Steps.write` wrote."""
    return Steps(**json.loads(path.read_text()))


def _between(place: float, places: list[int], values: list[float]) -> float:
    if place <= places[-1] or len(places) < 2:
        return float(np.interp(place, places, values))
    slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
    return values[-1] + slope * (place - places[-1])


def measure(source: str, options: SchedulerOptions, threads: int | None, rounds: int) -> Steps:
    """Every cell, in turns."""
    with session_of(api.open_exported(source), threads=threads) as session:
        more = replace(options, max_rows=options.max_rows + 2, step_tokens=options.step_tokens + 2)
        # Rows for the prompts of a step, whatever decodes beside them.
        engine = Engine(session, more, prefix_bytes=0)
        rows = sorted({0, 1, 2, options.max_rows // 2, options.max_rows - 1, options.max_rows})
        tokens = [0, 8, options.chunk_tokens // 2, options.chunk_tokens, 2 * options.chunk_tokens]
        taken: dict[tuple[int, int], list[float]] = {(r, t): [] for r in rows for t in tokens if r + t}
        for _ in range(rounds):
            for cell in taken:
                taken[cell].append(_one(engine, *cell, options))
        described = session.describe()
    seconds = [[statistics.median(taken[r, t]) if r + t else 0.0 for t in tokens] for r in rows]
    return Steps(
        rows=rows,
        prompt_tokens=tokens,
        seconds=seconds,
        options={
            "max_rows": options.max_rows, "chunk_tokens": options.chunk_tokens, "step_tokens": options.step_tokens
        },
        said=f"{source}, {described.runtime} {described.version}, {threads or 'all'} threads",
    )  # fmt: skip


def crowded(source: str, options: SchedulerOptions, threads: int, rounds: int) -> float:
    """How many times as long steps take while other processes do the same on the other processors; here and apart in
    turns, steps that decode and steps that read, the median of their ratios.
    """
    others = (os.cpu_count() or 1) // threads - 1
    ending, ratios = multiprocessing.Event(), []
    with session_of(api.open_exported(source), threads=threads) as session:
        engine = Engine(session, options, prefix_bytes=0)
        cells = [(options.max_rows, 0), (0, options.chunk_tokens)]
        for _ in range(3):
            alone = [statistics.median(_one(engine, *cell, options) for _ in range(rounds)) for cell in cells]
            ending.clear()
            beside = [
                multiprocessing.Process(target=_keep_busy, args=(source, options, threads, ending))
                for _ in range(others)
            ]
            for process in beside:
                process.start()
            time.sleep(WARM_UP_S)
            together = [statistics.median(_one(engine, *cell, options) for _ in range(rounds)) for cell in cells]
            ending.set()
            for process in beside:
                process.join()
            ratios += [slow / fast for slow, fast in zip(together, alone, strict=True)]
    return statistics.median(ratios)


def _keep_busy(source: str, options: SchedulerOptions, threads: int, ending: Event) -> None:
    with session_of(api.open_exported(source), threads=threads) as session:
        engine = Engine(session, options, prefix_bytes=0)
        while not ending.is_set():
            _one(engine, options.max_rows, 0, options)
            _one(engine, 0, options.chunk_tokens, options)


def _one(engine: Engine, rows: int, prompt_tokens: int, options: SchedulerOptions) -> float:
    """Rows that decode, then a step that reads prompts beside them."""
    draw = np.random.default_rng(rows * 1000 + prompt_tokens)
    for number in range(rows):
        engine.submit(_request(engine, f"row {number}", draw.integers(300, 2000, CONTEXT)))
    while any(place.unread > 1 for place in [*engine.scheduler.waiting.values(), *engine.scheduler.running.values()]):
        engine.step()
    for _ in range(SETTLED if rows else 0):
        engine.step()
    pieces = [options.chunk_tokens] * (prompt_tokens // options.chunk_tokens) + [prompt_tokens % options.chunk_tokens]
    for number, length in enumerate(filter(None, pieces)):
        engine.submit(_request(engine, f"prompt {number}", draw.integers(300, 2000, length)))
    times = 1 if prompt_tokens else SETTLED
    began = time.perf_counter()
    for _ in range(times):
        engine.step()
    took = (time.perf_counter() - began) / times
    for key in [*engine.scheduler.waiting, *engine.scheduler.running]:
        engine.cancel(key)
    return took


def _request(engine: Engine, key: str, ids: np.ndarray) -> Request:
    prompt = engine.session.prompt([int(token) for token in ids])
    return Request(key=key, prompt=prompt, sampling=Sampling(), max_new_tokens=10_000)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--max-batch", type=int, default=4)
    arguments.add_argument("--chunk-tokens", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    step = given.max_batch + 2 * given.chunk_tokens
    options = SchedulerOptions(max_rows=given.max_batch, chunk_tokens=given.chunk_tokens, step_tokens=step)
    found = measure(given.model, options, given.threads, given.rounds)
    found = replace(found, crowded=crowded(given.model, options, given.threads, given.rounds))
    found.write(given.out)
    print("rows \\ prompt tokens", *found.prompt_tokens, sep="\t")
    for rows, line in zip(found.rows, found.seconds, strict=True):
        print(rows, *(f"{1e3 * value:.1f} ms" for value in line), sep="\t")
    print(f"{found.crowded:.2f} times as long where every processor has one")


if __name__ == "__main__":
    main()
