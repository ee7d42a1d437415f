"""Run a command and report wall time, CPU time, and peak memory: anonymous and file-backed apart.

    python benchmarks/watch.py -- COMMAND …

Anonymous memory is what a machine must have; file-backed pages (a memory-mapped checkpoint) the kernel drops when it
needs room. Both are sampled every 10 ms from /proc, over the command and its children.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Seconds and gigabytes (10^9 bytes)."""

    command: str
    exit_code: int
    wall_s: float
    cpu_s: float
    peak_anonymous_gb: float
    peak_file_gb: float


def tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


def memory(pid: int) -> tuple[int, int]:
    """Kilobytes: anonymous, resident or swapped out, and file-backed resident ones."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        resident, swapped, file = (int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap", "RssFile"))
        return resident + swapped, file
    except (OSError, KeyError):
        return 0, 0


def watch(command: list[str]) -> Usage:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    anonymous = file = 0
    while process.poll() is None:
        sizes = [memory(pid) for pid in tree(process.pid)]
        anonymous = max(anonymous, sum(one for one, _ in sizes))
        file = max(file, sum(other for _, other in sizes))
        time.sleep(0.01)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(
        command=" ".join(command), exit_code=process.returncode, wall_s=round(wall, 2), cpu_s=round(cpu, 2),
        peak_anonymous_gb=round(anonymous * 1024 / 1e9, 3), peak_file_gb=round(file * 1024 / 1e9, 3),
    )  # fmt: skip


if __name__ == "__main__":
    arguments = sys.argv[1:]
    usage = watch(arguments[1:] if arguments[:1] == ["--"] else arguments)
    print(json.dumps(asdict(usage), indent=2))
    sys.exit(usage.exit_code)
