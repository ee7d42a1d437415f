"""Memory of a process and of the machine, and the speed at which it can be read."""

from __future__ import annotations

import time
from pathlib import Path

READ_BYTES = 1 << 30
"""Of the buffer that bandwidth is measured on: many times any last-level cache."""
READS = 10
PROCESSORS, MEMORY, STATUS = "/proc/cpuinfo", "/proc/meminfo", "/proc/{pid}/status"


def resident_bytes(pid: int | None = None) -> tuple[int, int] | None:
    """Anonymous and file-backed memory a process holds; None where the system does not tell them apart.

    Anonymous memory is what the machine must have; file-backed pages can be read again from their file.
    """
    fields = kernel_fields(STATUS.format(pid="self" if pid is None else pid))
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
    # Imported when asked for: the rest is known without it.
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


def kernel_fields(path: str) -> dict[str, str]:
    """``name: value`` lines of a kernel file; nothing where the system has no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def total_memory() -> int | None:
    """Bytes of memory and swap the machine has; None where the system does not say."""
    fields = kernel_fields(MEMORY)
    found = [int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal") if name in fields]
    return sum(found) if "MemTotal" in fields else None


def available_memory() -> int | None:
    """Bytes the kernel can give without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemAvailable"] * 1024 if "MemAvailable" in kilobytes else None
