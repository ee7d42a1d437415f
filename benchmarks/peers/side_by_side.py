"""glm-export and the peers in turn, all of them loaded: ratios that the guests a host has besides leave alone.

    python benchmarks/peers/run.py medium-native --work DIR --rounds 1          # converts what is not there
    python benchmarks/peers/side_by_side.py medium-native --work DIR --rounds 15 --only ours:int8-token llama_cpp:q8_0

Where memory's speed changes every half minute, a process that is measured and then the next compare two machines. Here
every form loads once and waits; each round asks all of them for one prompt and one answer, in another order, and reads
memory alone in between. A ratio is taken within a round, and its median over the rounds is printed. Who waits uses no
processor. What a process was given of memory makes a fifth as well, for as long as it lives: `--processes` starts all
anew so many times, with so many rounds each. Loading is measured before, `--loads` times in turn, each time a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from protocol import THREADS
from run import HERE, SCRIPTS, call, wait_until_quiet
from watch import memory

MEMORY = "memory"
READS = "from glm_export.machine.memory import read_bandwidth; import sys\nfor _ in sys.stdin: "
READS += f"print(read_bandwidth({THREADS}) / 1e9, flush=True)"
PATIENCE_S = 60
LABELS = {"read": "pp512", "write": "tg64"}
UNCOUNTED_LOADS = 2
"""The first load of ours packs nothing, the second packs and keeps; users meet the third."""


class Staying:
    """A peer that is loaded and waits for a line."""

    def __init__(self, script: str, form: str, where: list[str | Path]) -> None:
        self._name = f"{script}:{form}"
        command = [sys.executable, HERE / f"{script}.py", "stay", *where, "--form", form]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.loaded = self._answer()
        anonymous, file = (kilobytes * 1024 / 1e9 for kilobytes in memory(self._process.pid))
        self.loaded |= {"anonymous_gb": anonymous, "file_gb": file}

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        sys.exit(f"{self._name} ended with exit code {self._process.wait()}")

    def ask(self, what: str) -> float:
        """Tokens a second of one ``read`` or ``write``."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()["tokens_s"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def loads(chosen: list[tuple[str, str]], where: list[str | Path], count: int) -> dict[tuple[str, str], Any]:
    """Medians of what loading takes: seconds, seconds to the second token, gigabytes then."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for number in range(UNCOUNTED_LOADS + count):
        for script, form in chosen:
            with Staying(script, form, where) as peer:
                if number >= UNCOUNTED_LOADS:
                    found[script, form].append(peer.loaded)
    return {
        key: {name: statistics.median(one[name] for one in all_) for name in all_[0]} for key, all_ in found.items()
    }


def rounds(
    chosen: list[tuple[str, str]], where: list[str | Path], count: int, asked: tuple[str, ...]
) -> list[dict[str, Any]]:
    """For each round the memory's GB/s before and after, other work in cores, and tokens a second of every form."""
    with ExitStack() as stack:
        reader = subprocess.Popen(
            [sys.executable, "-c", READS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(reader.kill)
        peers = {key: stack.enter_context(Staying(*key, where)) for key in chosen}
        return list(_asked_in_turn(peers, reader, count, asked))


def _asked_in_turn(
    peers: dict[tuple[str, str], Staying], bandwidth: subprocess.Popen[str], count: int, asked: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    order, shuffler = list(peers), random.Random(0)

    def read_memory() -> float:
        assert bandwidth.stdin is not None
        assert bandwidth.stdout is not None
        bandwidth.stdin.write("\n")
        bandwidth.stdin.flush()
        return float(bandwidth.stdout.readline())

    for number in range(count + 1):
        # Also shows that whoever waits does nothing.
        wait_until_quiet(PATIENCE_S)
        shuffler.shuffle(order)
        one: dict[str, Any] = {MEMORY: [read_memory()]}
        for what in asked:
            one[what] = {" ".join(key): peers[key].ask(what) for key in order}
            one[MEMORY].append(read_memory())
        print(f"round {number}: {json.dumps(one)}", file=sys.stderr, flush=True)
        if number:  # the first warms up
            yield one


def table(found: list[dict[str, Any]], loaded: dict[tuple[str, str], Any], forms: list[tuple[str, str]]) -> str:
    """A row a form: medians, and the ratios of ours to it within a round."""
    names = [" ".join(key) for key in forms]
    ours = [name for name in names if name.startswith("ours")]
    asked = [what for what in ("read", "write") if what in found[0]]
    best = {what: max(ours, key=lambda name: middle([one[what][name] for one in found])) for what in asked}
    head = "".join(f"| {LABELS[what]} | {best[what]} / it (quartiles) " for what in asked)
    lines = [f"| form {head}| load s | second token s | anonymous GB | file-backed GB |"]
    lines.append("|---" * (5 + 2 * len(asked)) + "|")
    for key, name in zip(forms, names, strict=True):
        cells = []
        for what in asked:
            ratios = sorted(one[what][best[what]] / one[what][name] for one in found)
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            cells.append(f"{middle([one[what][name] for one in found]):.1f}")
            cells.append(f"{middle(ratios):.2f} ({low:.2f} to {high:.2f})")
        taken = loaded.get(key)
        cells += [f"{taken[name]:.2f}" for name in taken] if taken else ["–"] * 4
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    speeds = sorted(value for one in found for value in one[MEMORY])
    lines += ["", f"Memory read by {THREADS} threads between: {speeds[0]:.0f} to {speeds[-1]:.0f} GB/s, "]
    lines[-1] += f"median {middle(speeds):.0f}; {len(found)} rounds."
    return "\n".join(lines)


def middle(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape")
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--processes", type=int, default=1, help="of each form, one after the other")
    options.add_argument("--decoding", action="store_true", help="no prompts but those behind which tokens are written")
    options.add_argument("--loads", type=int, default=0, help="of each form, before the rounds")
    options.add_argument("--only", nargs="+", metavar="PEER:FORM", required=True)
    options.add_argument("--json", type=Path, help="where to write every measurement")
    arguments = options.parse_args()
    where: list[str | Path] = ["--work", arguments.work, "--checkpoint", arguments.work / arguments.shape]
    known = {script: json.loads(call(script, "forms")) for script in SCRIPTS}
    chosen = [(script, form) for script, form in (name.split(":") for name in arguments.only) if form in known[script]]
    if len(chosen) != len(arguments.only):
        sys.exit(f"unknown among {' '.join(arguments.only)}; there are {known}")
    wait_until_quiet(PATIENCE_S)
    loaded = loads(chosen, where, arguments.loads) if arguments.loads else {}
    asked = ("write",) if arguments.decoding else ("write", "read")
    found = [one for _ in range(arguments.processes) for one in rounds(chosen, where, arguments.rounds, asked)]
    print(table(found, loaded, chosen))
    if arguments.json:
        told = {"loads": {" ".join(key): value for key, value in loaded.items()}, "rounds": found}
        arguments.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
