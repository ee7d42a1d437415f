"""Rows together and streams of requests: glm-export beside llama.cpp's server and OpenVINO GenAI, in one run.

    python benchmarks/serving/beside.py medium-native --work /tmp/peers --rounds 3

Makes what it needs under `--work` (a checkpoint of random weights, environments, converted models), then measures the
peers in turn, round by round: first rows that decode together and nothing else, then streams through each server.
OpenVINO GenAI has no server of its own here and is asked in its process. Prints medians, and ours over each peer's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "peers"))

import llama_server
import run as peers
from load import Server, measured
from traffic import Traffic

GLM_EXPORT = Path(sys.executable).with_name("glm-export")
THREADS, MOST_ROWS = 2, 16
WARM_UP_S = 5.0
Figures = dict[str, float]


class Machine:
    """What is measured: where it lies."""

    def __init__(self, work: Path, checkpoint: Path, form: str, ours: Path | None = None) -> None:
        self.work, self.checkpoint, self.form = work, checkpoint, form
        models = work / "models" / checkpoint.name
        self.given = ours
        self.ours, self.openvino = ours or models / f"ours-{form}", models / "openvino_genai-int8"

    def prepare(self, names: list[str]) -> None:
        """Environments and models of those that are asked; nothing where they are there already."""
        where = ("--work", self.work, "--checkpoint", self.checkpoint)
        if self.given is None:
            peers.call("ours", "convert", *where, "--form", self.form)
        if any(name.startswith("OpenVINO") for name in names):
            peers.call("openvino_genai", "install", "--work", self.work)
            peers.call("openvino_genai", "convert", *where, "--form", "int8")
        if "llama.cpp" in names:
            llama_server.install(self.work)
            llama_server.convert(self.work, self.checkpoint)

    def ours_together(self, rows: int) -> Figures:
        """By ``bench``."""
        command: list[str | Path] = [GLM_EXPORT, "bench", self.ours, "--json", "--threads", str(THREADS)]
        command += [
            "--batch",
            str(rows),
            "--rounds",
            "1",
            "--prompt-tokens",
            "128",
            "--context",
            "128",
            "--new-tokens",
            "64",
        ]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return {"tokens_s": json.loads(printed)["decode_tokens_s"]}

    def llama_together(self, rows: int) -> Figures:
        """By its own benchmark."""
        return {"tokens_s": llama_server.together(self.work, self.checkpoint, rows, THREADS)}

    def openvino_asked(self, *options: str) -> Callable[[int, float], Figures]:
        """In its environment."""

        def ask(streams: int, seconds: float = 0) -> Figures:
            python = self.work / "environments" / "openvino_genai" / "bin" / "python"
            script = Path(__file__).with_name("openvino_engine.py")
            command: list[str | Path] = [python, script, self.openvino, "--streams", str(streams), *options]
            command += ["--threads", str(THREADS), "--seconds", str(seconds)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            told: Figures = json.loads(printed.splitlines()[-1])
            return told

        return ask

    @contextmanager
    def ours_served(self) -> Iterator[Server]:
        """By ``serve``."""
        command: list[str | Path] = [GLM_EXPORT, "serve", self.ours, "--port", "0", "--max-batch", str(MOST_ROWS)]
        process = subprocess.Popen([*command, "--threads", str(THREADS)], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"at (http://\S+)/v1", said)):
            line = process.stderr.readline()
            if not line:
                sys.exit(f"the server ended with {process.wait()}: {said}")
            said += line
        try:
            yield Server(found[1], self.ours.name)
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def llama_served(self) -> Iterator[Server]:
        """By its own server."""
        with llama_server.served(self.work, self.checkpoint, MOST_ROWS, THREADS) as address:
            yield Server(address, "any")


def streamed(server: Server, streams: int, seconds: float) -> Figures:
    """So many, after a short while that does not count."""
    asyncio.run(measured(server, Traffic(), streams, WARM_UP_S))
    seen = asyncio.run(measured(server, Traffic(), streams, seconds))
    if seen.errors:
        sys.exit(f"{server.address}: {seen.errors[0]}")
    return seen.to_json()


def rows_together(machine: Machine, names: list[str], counts: list[int]) -> Iterator[tuple[str, int, Figures]]:
    """Every peer with every number of rows, in turn."""
    asked: dict[str, Callable[[int], Figures]] = {
        "ours": machine.ours_together,
        "llama.cpp": machine.llama_together,
        "OpenVINO": machine.openvino_asked("--together"),  # type: ignore[dict-item]
        "OpenVINO float32": machine.openvino_asked("--together", "--precision", "f32"),  # type: ignore[dict-item]
    }
    for count in counts:
        for name in names:
            ask = asked[name]
            peers.wait_until_quiet(60)
            yield name, count, ask(count)


def requests_streamed(
    machine: Machine, names: list[str], counts: list[int], seconds: float
) -> Iterator[tuple[str, int, Figures]]:
    """Every server with every number of streams."""
    servers = {"ours": machine.ours_served, "llama.cpp": machine.llama_served}
    engines = {"OpenVINO": (), "OpenVINO float32": ("--precision", "f32")}
    for name in (one for one in names if one in servers):
        serving = servers[name]
        peers.wait_until_quiet(60)
        with serving() as server:
            for count in counts:
                yield name, count, streamed(server, count, seconds)
    for name in (one for one in names if one in engines):
        ask = machine.openvino_asked(*engines[name])
        for count in counts:
            peers.wait_until_quiet(60)
            yield name, count, ask(count, seconds)


def table(title: str, found: dict[tuple[str, int], list[Figures]]) -> str:
    """Medians, and ours over each."""
    counts, names = sorted({count for _, count in found}), list(dict.fromkeys(name for name, _ in found))
    figures = list(next(iter(found.values()))[0])
    lines = [f"{title}\n", "| | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]

    def middle(name: str, count: int, figure: str) -> float:
        return statistics.median(one[figure] for one in found[name, count])

    for figure in figures:
        for name in names:
            values = " | ".join(f"{middle(name, count, figure):.1f}" for count in counts)
            lines.append(f"| {name} {figure} | {values} |")
    for name in names[1:]:
        ratios = " | ".join(
            f"{middle(names[0], count, 'tokens_s') / middle(name, count, 'tokens_s'):.2f}" for count in counts
        )
        lines.append(f"| ours / {name} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--form", default="int8-token", help="of ours, as benchmarks/peers/ours.py has them")
    parser.add_argument("--ours", type=Path, help="an exported folder of ours, in place of one in that form")
    parser.add_argument("--peers", nargs="+", default=["ours", "llama.cpp", "OpenVINO", "OpenVINO float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    machine = Machine(asked.work, peers.make_checkpoint(asked.shape, asked.work), asked.form, asked.ours)
    machine.prepare(asked.peers)
    tables: dict[str, dict[tuple[str, int], list[Figures]]] = {"rows": defaultdict(list), "streams": defaultdict(list)}
    for number in range(asked.rounds):
        parts: dict[str, Iterator[tuple[str, int, Any]]] = {
            "rows": rows_together(machine, asked.peers, asked.rows),
            "streams": requests_streamed(machine, asked.peers, asked.streams, asked.seconds),
        }
        for part, results in parts.items():
            for name, count, told in results:
                tables[part][name, count].append(told)
                print(f"round {number + 1}: {part} {count} {name} {json.dumps(told)}", file=sys.stderr, flush=True)
    for part, found in tables.items():
        if found:
            print(table(f"By {part}, medians of {asked.rounds}:", found), end="\n\n")


if __name__ == "__main__":
    main()
