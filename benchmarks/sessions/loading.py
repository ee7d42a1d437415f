"""How long a program takes to load and what it takes of memory: packed anew each time, or mapped from the cache.

    python benchmarks/make_checkpoint.py medium DIR/medium
    glm-export export DIR/medium --out DIR/NAME --dialect ort --recipe RECIPE
    python benchmarks/sessions/loading.py DIR/NAME [DIR/NAME …] --cache DIR/cache [--rounds 5]

Every load is a process of its own, in turn without and with the cache; files are in memory. Printed are medians:
seconds until the session is there, until the second token after a prompt of 16, gigabytes of anonymous memory then, and
what two processes hold together (their PSS, in which a page of both counts half for each).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOADED = "loaded"


def load(program: str, cache: bool, wait: bool) -> None:
    """In a process of its own: load, write two tokens, say what it took, and stay until told."""
    from glm_export import api
    from glm_export.artifacts.program import load_program
    from glm_export.inputs.prompts import Prompt
    from glm_export.machine.memory import resident_bytes

    opened = load_program(Path(program))
    began = time.perf_counter()
    with api.load_session(opened, cache=cache) as session:
        there = time.perf_counter() - began
        feeds = session.feeds([Prompt(ids=tuple(range(5, 21)))])
        session.prefill(feeds)
        session.decode(feeds.next_step([3], session.last_position(feeds)))
        written = time.perf_counter() - began
        memory = resident_bytes()
        told = {"load": there, "second token": written, "anonymous": memory[0] if memory else 0}
        print(json.dumps(told), flush=True)
        if wait:
            sys.stdin.readline()


def started(program: str, cache: bool, root: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, __file__, program, LOADED, "--cache" if cache else "--no-cache"]
    environment = os.environ | {"GLM_EXPORT_CACHE": str(root)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate("\n")


def shares(pids: list[int]) -> int:
    """PSS of processes together, in bytes."""
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def measured(program: str, root: Path, rounds: int) -> None:
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    # Seen once, packed the second time.
    ended(started(program, True, root)[0])
    process, packed = started(program, True, root)
    ended(process)
    for _ in range(rounds):
        for cache in found:
            process, told = started(program, cache, root)
            ended(process)
            found[cache].append(told)
    for cache, all_told in found.items():
        pair = [started(program, cache, root)[0] for _ in range(2)]
        together = shares([process.pid for process in pair])
        for process in pair:
            ended(process)
        of = {key: statistics.median(told[key] for told in all_told) for key in all_told[0]}
        print(
            f"{Path(program).name:20} {'mapped' if cache else 'packed anew':12} load {of['load']:.2f} s  second token "
            f"{of['second token']:.2f} s  anonymous {of['anonymous'] / 1e9:.2f} GB  "
            f"two processes {together / 1e9:.2f} GB"
        )
    print(f"{Path(program).name:20} packing, once {packed['load']:.2f} s", flush=True)


def main() -> None:
    if LOADED in sys.argv:
        load(sys.argv[1], "--cache" in sys.argv, wait=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for program in given.programs:
        measured(program, given.cache, given.rounds)


if __name__ == "__main__":
    main()
