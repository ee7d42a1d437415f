"""What a measurement was taken on: the machine, the memory a process holds, the speed at which memory can be read."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from glm_export.machine.memory import MEMORY, PROCESSORS, kernel_fields


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
    kilobytes = kernel_fields(MEMORY).get("MemTotal", "").split()
    return Machine(
        processor=kernel_fields(PROCESSORS).get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(kilobytes[0]) * 1024 if kilobytes else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu=_gpu(),
        python=platform.python_version(),
        packages={name: found for name in packages if (found := _version(name)) is not None},
    )


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
