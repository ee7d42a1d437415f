"""Load on a server that speaks OpenAI's completions: tokens a second, first token, between tokens, errors.

    python benchmarks/serving/load.py http://127.0.0.1:8000 --model NAME --streams 1 4 8 16 --seconds 60

Each stream asks, reads to the end, and asks again at once, until the time is over: prompts of `--prompt-tokens` random
ids (a share of them begins alike, as conversations do), answers of `--new-tokens`. Times are taken where the client
reads. Any server with `/v1/completions` is a peer: give its address. With `--watch PID` the server's resident memory
before and behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx


@dataclass
class Seen:
    """What all streams have seen."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)


async def stream(client: httpx.AsyncClient, asked: argparse.Namespace, seen: Seen, end: float, seed: int) -> None:
    """Ask and read, again and again."""
    draw = random.Random(seed)
    shared = [random.Random(0).randrange(*asked.ids) for _ in range(asked.prompt_tokens // 2)]
    while time.perf_counter() < end:
        own = asked.prompt_tokens - (len(shared) if draw.random() < asked.alike else 0)
        prompt = [*shared[: asked.prompt_tokens - own], *(draw.randrange(*asked.ids) for _ in range(own))]
        body = {
            "model": asked.model, "prompt": prompt, "max_tokens": asked.new_tokens, "temperature": 0.8, "stream": True,
            "ignore_eos": True, "logit_bias": {str(token): -100 for token in asked.never},
        }  # fmt: skip
        started = last = time.perf_counter()
        try:
            async with client.stream("POST", f"{asked.address}/v1/completions", json=body) as answer:
                if answer.status_code == 429:
                    seen.refused += 1
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
                    continue
                if answer.status_code != 200:
                    seen.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                    continue
                read = 0
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        seen.errors.append(str(piece["error"])[:200])
                        break
                    if piece["choices"] and piece["choices"][0]["text"]:
                        now = time.perf_counter()
                        (seen.first if not read else seen.between).append(now - (started if not read else last))
                        last, read = now, read + 1
                seen.tokens += read
                seen.answers += 1
        except httpx.HTTPError as error:
            seen.errors.append(repr(error))


async def measured(asked: argparse.Namespace, streams: int) -> Seen:
    """So many streams for the time."""
    seen, limits = Seen(), httpx.Limits(max_connections=streams + 8)
    headers = {"authorization": f"Bearer {asked.key}"} if asked.key else {}
    async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:
        end = time.perf_counter() + asked.seconds
        await asyncio.gather(*(stream(client, asked, seen, end, seed) for seed in range(streams)))
    return seen


def resident_mb(pid: int | None) -> float:
    """Of the server."""
    if pid is None:
        return 0.0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def quantiles(seconds: list[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    if len(seconds) < 2:
        return "–"
    cut = statistics.quantiles(seconds, n=100)
    return f"{1e3 * statistics.median(seconds):.0f} / {1e3 * cut[98]:.0f}"


def main() -> None:
    """Print a row for each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--key")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--alike", type=float, default=0.5, help="share of prompts that begin alike")
    parser.add_argument("--ids", type=int, nargs=2, default=[300, 2000], help="prompts are drawn from these ids")
    parser.add_argument("--never", type=int, nargs="*", default=[], help="ids that end a text, kept from being written")
    parser.add_argument("--watch", type=int, help="the server's process")
    asked = parser.parse_args()
    columns = ("streams", "tokens/s", "first token, ms (p50 / p99)", "between tokens", "answers", "refused", "errors")
    print("|", " | ".join((*columns, "memory, MB")), "|")
    print("|---|---|---|---|---|---|---|---|")
    for streams in asked.streams:
        before, started = resident_mb(asked.watch), time.perf_counter()
        seen = asyncio.run(measured(asked, streams))
        rate, after = seen.tokens / (time.perf_counter() - started), resident_mb(asked.watch)
        print(
            f"| {streams} | {rate:.1f} | {quantiles(seen.first)} | {quantiles(seen.between)} | {seen.answers} | "
            f"{seen.refused} | {len(seen.errors)} | {before:.0f} → {after:.0f} |"
        )
        for error in seen.errors[:3]:
            print(f"  error: {error}")


if __name__ == "__main__":
    main()
