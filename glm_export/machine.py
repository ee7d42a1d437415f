"""What a measurement was taken on: the machine, the memory a process holds, the speed at which memory can be read."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

READ_BYTES = 1 << 30
"""Of the buffer that bandwidth is measured on: many times any last-level cache."""
READS = 10
PROCESSORS, MEMORY, STATUS = "/proc/cpuinfo", "/proc/meminfo", "/proc/{pid}/status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts a figure means nothing without. What the system does not tell is None."""

    processor: str
    cores: int
    memory_bytes: int | None
    system: str
    gpu: str | None
    python: str
    packages: dict[str, str]


def this_machine(packages: Sequence[str]) -> Machine:
    """Facts about here, with the versions of the packages named."""
    kilobytes = _fields(MEMORY).get("MemTotal", "").split()
    return Machine(
        processor=_fields(PROCESSORS).get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(kilobytes[0]) * 1024 if kilobytes else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu=_gpu(),
        python=platform.python_version(),
        packages={name: found for name in packages if (found := _version(name)) is not None},
    )


def resident_bytes(pid: int | None = None) -> tuple[int, int] | None:
    """Anonymous and file-backed memory a process holds; None where the system does not tell them apart.

    Anonymous memory is what the machine must have; file-backed pages can be read again from their file.
    """
    fields = _fields(STATUS.format(pid="self" if pid is None else pid))
    if "RssAnon" not in fields or "RssFile" not in fields:
        return None
    anonymous, file = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return anonymous, file


def read_bandwidth(threads: int, device: str = "cpu") -> float | None:
    """Bytes a second at which memory can be read: the best of several sums over a large buffer.

    Args:
        threads: that read together.
        device: ``cpu`` or ``cuda``; None is returned where PyTorch cannot reach it.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    torch.set_num_threads(threads)
    numbers = torch.ones(READ_BYTES // 4, device=device)
    fastest = float("inf")
    for _ in range(READS):
        started = time.perf_counter()
        # item() waits for a GPU.
        numbers.sum().item()
        fastest = min(fastest, time.perf_counter() - started)
    return READ_BYTES / fastest


def _fields(path: str) -> dict[str, str]:
    """``name: value`` lines of a kernel file; nothing where the system has no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _gpu() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = result.stdout.strip().splitlines()
    return lines[0] if result.returncode == 0 and lines else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
