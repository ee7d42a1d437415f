"""The simulation held to real engines: replicas on a Ray cluster of this machine, and the same load simulated.

    python benchmarks/capacity/validate.py MODEL steps.json --replicas 1 2 4 --seconds 60

Steps are those that `steps.py` measured with one thread. The work before and behind an engine is taken from requests
of one token, asked one after another. Clients ask again as soon as they are answered, six for each replica, whole
answers of 16 to 64 tokens behind prompts of 16 to 256.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import ray
from simulation import Asked, Behaviour, Cluster, Found, simulate, whole_s
from steps import Steps, read_steps

from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.cluster import deploy, take_down
from glm_export.serving.ray.options import RayOptions

CLIENTS = 6
"""For each replica."""
LOAD = Behaviour(think_s=0.0, question=(16, 256), answer=(16, 64))


async def asked(address: str, clients: int, seconds: float) -> Found:
    """What clients see of a server."""
    found, began = Found(seconds=seconds * 0.8), time.perf_counter()

    async def client(http: httpx.AsyncClient, number: int) -> None:
        for prompt, answer, *_ in LOAD.conversations(number):
            came = time.perf_counter() - began
            if came > seconds:
                return
            told = await http.post("/v1/completions", json=_body(prompt, answer, number))
            told.raise_for_status()
            done = time.perf_counter() - began
            if seconds * 0.2 < done < seconds:
                found.answered.append(Asked(user=number, prompt=prompt, answer=answer, came=came, done=done))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http, number) for number in range(clients)))
    return found


def _body(prompt: int, answer: int, seed: int) -> dict[str, object]:
    ids = [300 + (seed * 7919 + place * 104729) % 1700 for place in range(prompt)]
    return {"prompt": ids, "max_tokens": answer, "ignore_eos": True, "temperature": 0}


def front_s(address: str, steps: Steps) -> float:
    """Work for a request besides its engine's."""
    with httpx.Client(base_url=address, timeout=600) as http:
        taken = []
        for number in range(60):
            began = time.perf_counter()
            http.post("/v1/completions", json=_body(1, 1, number)).raise_for_status()
            taken.append(time.perf_counter() - began)
    return max(0.0, statistics.median(taken) - steps.step_s(0, 1))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("steps", type=Path)
    arguments.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--port", type=int, default=8123)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--again", type=Path, help="simulate beside the real figures that --out wrote before")
    given = arguments.parse_args()
    steps = read_steps(given.steps)
    if given.again:
        for row in json.loads(given.again.read_text())["runs"]:
            print(json.dumps(_again(row, steps, given.seconds)))
        return
    options = ServeOptions(
        port=given.port, max_batch=steps.options["max_rows"], chunk_tokens=steps.options["chunk_tokens"], threads=1,
        prefix_megabytes=0, queue=10_000,
    )  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"
    told, address = [], f"http://127.0.0.1:{given.port}"
    # More than there are: Ray counts processors, and an engine of one thread may share one.
    ray.init(address="local", num_cpus=2 * max(given.replicas), include_dashboard=False, log_to_driver=False)
    try:
        for count in given.replicas:
            deploy([given.model], options, RayOptions(replicas=count, cpus=1, routing="load"))
            asyncio.run(asked(address, CLIENTS * count, 5))
            front = front_s(address, steps)
            real = asyncio.run(asked(address, CLIENTS * count, given.seconds))
            told.append(_row(count, front, real, simulated(steps, count, front, given.seconds)))
            print(json.dumps(told[-1]), flush=True)
        take_down("glm-export", 10)
    finally:
        ray.shutdown()
    if given.out:
        given.out.write_text(json.dumps({"steps": steps.said, "runs": told}, indent=1) + "\n")


def simulated(steps: Steps, count: int, front: float, seconds: float) -> Found:
    """The same load on as many replicas."""
    cluster = Cluster(steps=steps, replicas=count, processors=os.cpu_count() or 1, front_s=front)
    return simulate(cluster, CLIENTS * count, LOAD, seconds=seconds)


FIGURES: dict[str, Callable[[Found], float]] = {
    "tokens_s": lambda found: found.tokens_s,
    "p50_s": lambda found: found.quantile(whole_s, 50),
    "p99_s": lambda found: found.quantile(whole_s, 99),
}


def _row(count: int, front: float, real: Found, model: Found) -> dict[str, float]:
    row: dict[str, float] = {"replicas": count, "front_ms": 1e3 * front, "answers": len(real.answered)}
    return _beside(row | {name: figure(real) for name, figure in FIGURES.items()}, model)


def _again(row: dict[str, float], steps: Steps, seconds: float) -> dict[str, float]:
    return _beside(dict(row), simulated(steps, int(row["replicas"]), row["front_ms"] / 1e3, seconds))


def _beside(row: dict[str, float], model: Found) -> dict[str, float]:
    for name, figure in FIGURES.items():
        row[f"simulated_{name}"] = figure(model)
        row[f"error_{name}"] = row[f"simulated_{name}"] / row[name] - 1 if row[name] else math.nan
    return row


if __name__ == "__main__":
    main()
