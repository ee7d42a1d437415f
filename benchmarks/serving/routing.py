"""Where requests of conversations go: to the engine that read their beginning, to one with least, or by chance.

    python benchmarks/serving/routing.py MODEL --replicas 2 --users 8 --rounds 3

A Ray cluster of this machine, an engine of one thread each. Users talk at once and do not think: every question has all
that was said before it. The same conversations are asked of each routing in turn; the share of prompts' tokens that
were not read again is the server's own count, times are the clients'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import httpx
import ray
from traffic import quantile

from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.cluster import deploy, take_down
from glm_export.serving.ray.options import ROUTINGS, RayOptions

TURNS, SYSTEM, QUESTION, ANSWER = 5, 64, (16, 96), (8, 32)


@dataclass
class Talks:
    """What users saw. ``first``: seconds to a first token."""

    first: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


async def talk(http: httpx.AsyncClient, seed: int, seen: Talks) -> None:
    """One user: a conversation, as ids."""
    draw = random.Random(seed)
    said = [300 + number for number in range(SYSTEM)]
    for _ in range(TURNS):
        said += [draw.randrange(300, 2000) for _ in range(draw.randrange(*QUESTION))]
        body = {
            "prompt": said, "max_tokens": draw.randrange(*ANSWER), "ignore_eos": True, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        began, first = time.perf_counter(), 0.0
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line[6:])
                first = first or time.perf_counter() - began
                if piece.get("usage"):
                    seen.prompt_tokens += piece["usage"]["prompt_tokens"]
                    seen.cached_tokens += piece["usage"]["prompt_tokens_details"]["cached_tokens"]
        seen.first.append(first)
        said = [*said, *(draw.randrange(300, 2000) for _ in range(8))]


async def talks(address: str, users: int, seed: int) -> Talks:
    """All of them at once."""
    seen, began = Talks(), time.perf_counter()
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(*(talk(http, seed * 1000 + user, seen) for user in range(users)))
    seen.seconds = time.perf_counter() - began
    return seen


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--replicas", type=int, default=2)
    arguments.add_argument("--users", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--port", type=int, default=8125)
    given = arguments.parse_args()
    ray.init(address="local", num_cpus=2 * given.replicas, include_dashboard=False, log_to_driver=False)
    found: dict[str, list[Talks]] = defaultdict(list)
    try:
        for seed in range(given.rounds):
            for routing in ROUTINGS:
                options = ServeOptions(port=given.port, max_batch=4, threads=1)
                deploy([given.model], options, RayOptions(replicas=given.replicas, cpus=1, routing=routing))
                # Another seed warms up: what it read begins nobody's prompt but for the system's words.
                asyncio.run(talks(f"http://127.0.0.1:{given.port}", given.replicas, 900 + seed))
                found[routing].append(asyncio.run(talks(f"http://127.0.0.1:{given.port}", given.users, seed)))
                take_down("glm-export", 10)
    finally:
        ray.shutdown()
    for routing, seen in found.items():
        reused = sum(one.cached_tokens for one in seen) / sum(one.prompt_tokens for one in seen)
        first = [value for one in seen for value in one.first]
        told = {
            "routing": routing, "reused": round(reused, 3), "first_p50_ms": round(1e3 * quantile(first, 50)),
            "first_p99_ms": round(1e3 * quantile(first, 99)),
            "seconds": round(statistics.median(one.seconds for one in seen), 2),
        }  # fmt: skip
        print(json.dumps(told))


if __name__ == "__main__":
    main()
