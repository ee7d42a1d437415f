"""Load on a server that speaks OpenAI's completions: tokens a second, first token, between tokens, errors.

    python benchmarks/serving/load.py http://127.0.0.1:8000 --model NAME --streams 1 4 8 16 --seconds 60

Each stream asks, reads to the end, and asks again at once, until the time is over. Prompts are random ids, of lengths
drawn evenly on a logarithmic scale, as answers are; a share of the prompts begins alike, as conversations do. Times are
taken where the client reads, tokens counted by the server's usage. Any server with `/v1/completions` is a peer: give
its address. With `--watch PID` the server's resident memory before and behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from traffic import Seen, Traffic


@dataclass(frozen=True)
class Server:
    """Who is asked."""

    address: str
    model: str
    key: str | None = None


async def ask(client: httpx.AsyncClient, server: Server, body: dict[str, object], seen: Seen, end: float) -> None:
    """One request, read to its end; what comes behind ``end`` is not counted."""
    started = last = time.perf_counter()
    async with client.stream("POST", f"{server.address}/v1/completions", json=body) as answer:
        if answer.status_code == 429:
            seen.refused += 1
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
            return
        if answer.status_code != 200:
            seen.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
            return
        read = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line[6:])
            if "error" in piece:
                seen.errors.append(str(piece["error"])[:200])
                return
            now = time.perf_counter()
            if now < end and piece["choices"] and piece["choices"][0]["text"]:
                (seen.first if not read else seen.between).append(now - (started if not read else last))
                last, read = now, read + 1
        seen.tokens += read
        seen.answers += now < end


async def stream(
    client: httpx.AsyncClient, server: Server, traffic: Traffic, seen: Seen, end: float, seed: int
) -> None:
    """Ask and read, again and again."""
    for prompt, answer in traffic.requests(seed):
        if time.perf_counter() > end:
            return
        body = {
            "model": server.model, "prompt": prompt, "max_tokens": answer, "temperature": traffic.temperature,
            "stream": True, "ignore_eos": True, "cache_prompt": True,
        }  # fmt: skip
        try:
            await ask(client, server, body, seen, end)
        except httpx.HTTPError as error:
            seen.errors.append(repr(error))


async def measured(server: Server, traffic: Traffic, streams: int, seconds: float) -> Seen:
    """So many streams for the time."""
    # A connection a request: one that a server closes while it is asked again would count as an error.
    seen, limits = Seen(seconds=seconds), httpx.Limits(max_connections=streams + 8, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
    async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(stream(client, server, traffic, seen, end, seed) for seed in range(streams)))
    return seen


def resident_mb(pid: int | None) -> float:
    """Of the server."""
    if pid is None:
        return 0.0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Print a row for each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--key")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=Traffic.prompt_tokens)
    parser.add_argument("--new-tokens", type=int, nargs=2, default=Traffic.new_tokens)
    parser.add_argument("--alike", type=float, default=Traffic.alike, help="share of prompts that begin alike")
    parser.add_argument("--ids", type=int, nargs=2, default=Traffic.ids, help="prompts are drawn from these ids")
    parser.add_argument("--temperature", type=float, default=Traffic.temperature)
    parser.add_argument("--watch", type=int, help="the server's process")
    asked = parser.parse_args()
    server = Server(asked.address, asked.model, asked.key)
    prompts, answers, ids = ((low, high) for low, high in (asked.prompt_tokens, asked.new_tokens, asked.ids))
    traffic = Traffic(prompts, answers, ids, asked.alike, asked.temperature)
    columns = ("streams", "tokens/s", "first token, ms (p50 / p99)", "between tokens", "answers", "refused", "errors")
    print("|", " | ".join((*columns, "memory, MB")), "|")
    print("|---" * 8 + "|")
    for streams in asked.streams:
        before = resident_mb(asked.watch)
        seen = asyncio.run(measured(server, traffic, streams, asked.seconds))
        told = seen.to_json()
        print(
            f"| {streams} | {told['tokens_s']:.1f} | {told['first_p50_ms']:.0f} / {told['first_p99_ms']:.0f} | "
            f"{told['between_p50_ms']:.0f} / {told['between_p99_ms']:.0f} | {seen.answers} | {seen.refused} | "
            f"{len(seen.errors)} | {before:.0f} → {resident_mb(asked.watch):.0f} |"
        )
        for error in seen.errors[:3]:
            print(f"  error: {error}")


if __name__ == "__main__":
    main()
