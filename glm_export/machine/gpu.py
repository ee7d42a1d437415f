"""What NVIDIA's driver says of this machine, asked through its own library: no CUDA toolkit, no PyTorch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

MAJOR, MINOR = 75, 76
"""CUdevice_attribute: compute capability (``cuda.h``)."""
NAME_BYTES = 256
DEVICE = 0
"""The one device that engines are built on, held to and run on; CUDA_VISIBLE_DEVICES says which one that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device: its name, compute capability such as ``9.0``, and memory in bytes."""

    name: str
    compute_capability: str
    memory_bytes: int


def has_driver() -> bool:
    """Whether the driver is installed and sees a device.

    TensorRT's own calls crash the process where it is not, so they are made only after this.
    """
    return _driver() is not None


def driver_version() -> str | None:
    """The newest CUDA the driver serves, such as ``CUDA 13.0``; None where there is no driver."""
    driver = _driver()
    version = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def gpus() -> list[Gpu]:
    """The devices this process may use, in CUDA's order."""
    driver = _driver()
    if driver is None:
        return []
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return [_gpu(driver, index) for index in range(count.value)]


def used_gpu() -> Gpu | None:
    """The device that counts, :data:`DEVICE`; None where there is none."""
    return next(iter(gpus()[DEVICE:]), None)


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return driver if ready else None


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, value, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(name=name.value.decode(), compute_capability=".".join(capability), memory_bytes=memory.value)
