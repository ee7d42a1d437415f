"""What Ray Serve's proxy and our ingress take of a processor, for each request and for each token of a stream.

    python benchmarks/capacity/front.py --out front.json

Streams of the embedded model go through a cluster of this machine; the processors' time is the kernel's own count for
the two processes. Streams of one token and of many tell what a request costs and what a token does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

import httpx
import ray

from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.cluster import deploy, take_down
from glm_export.serving.ray.options import RayOptions

FRONT = ("ray::ServeReplica:glm-export:ingress", "ray::ProxyActor")
STREAMS, LONG = 8, 200


def front_s() -> float:
    """Seconds of a processor that both processes have had."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().decode(errors="replace").startswith(FRONT):
                fields = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


async def streams(address: str, count: int, tokens: int) -> int:
    """Ask for as many streams; returns the pieces that came."""
    pieces = 0

    async def client(http: httpx.AsyncClient, numbers: range) -> None:
        nonlocal pieces
        for number in numbers:
            body = {"prompt": "床前明月光", "max_tokens": tokens, "ignore_eos": True, "stream": True, "seed": number}
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    pieces += line.startswith("data: {")

    async with httpx.AsyncClient(base_url=address, timeout=600) as http:
        await asyncio.gather(*(client(http, range(one, count, STREAMS)) for one in range(STREAMS)))
    return pieces


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--port", type=int, default=8124)
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        deploy(["demo"], ServeOptions(port=given.port, max_batch=STREAMS, threads=1), RayOptions(cpus=1))
        address = f"http://127.0.0.1:{given.port}"
        asyncio.run(streams(address, 32, 20))
        used = []
        for count, tokens in ((400, 1), (40, LONG)):
            before = front_s()
            pieces = asyncio.run(streams(address, count, tokens))
            used.append((count, pieces, front_s() - before))
        take_down("glm-export", 10)
    finally:
        ray.shutdown()
    (short, few, short_s), (long, many, long_s) = used
    # Two equations: seconds = requests * a + pieces * b.
    token = (long_s * short - short_s * long) / (many * short - few * long)
    request = (short_s - few * token) / short
    told = {"request_s": max(0.0, request), "token_s": max(0.0, token)}
    given.out.write_text(json.dumps(told) + "\n")
    print(f"a request {1e3 * told['request_s']:.2f} ms, a token {1e3 * told['token_s']:.3f} ms of a processor")


if __name__ == "__main__":
    main()
