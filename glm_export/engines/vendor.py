"""TensorRT and TensorRT-RTX as found on this machine: the one door to NVIDIA's modules.

What a version offers is asked for by name (``hasattr``), not derived from its number: names came and went between 8.6,
10 and 11, and TensorRT-RTX has both old and new ones. Some calls crash the process where there is no driver, so they
stand behind :meth:`TensorRT.require_driver`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.machine.gpu import has_driver

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
RUNTIMES = (TENSORRT, TENSORRT_RTX)
MODULES = {TENSORRT: ("tensorrt",), TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL = {
    TENSORRT: "pip install 'glm-export[tensorrt]' --extra-index-url https://pypi.nvidia.com",
    TENSORRT_RTX: "pip install 'glm-export[rtx]' (Linux, x86-64)",
}
SERIOUS = ("ERROR", "INTERNAL_ERROR")


@dataclass(slots=True)
class BuildLog:
    """What TensorRT says: ``errors`` by themselves, and every line to ``listener`` with its severity."""

    errors: list[str] = field(default_factory=list)
    listener: Callable[[str, str], None] | None = None

    def take(self, severity: str, text: str) -> None:
        """One message of the library."""
        if severity in SERIOUS:
            self.errors.append(text)
        if self.listener is not None:
            self.listener(severity, text)

    @property
    def reason(self) -> str:
        """The errors since :meth:`clear`, in one line."""
        return "; ".join(" ".join(text.split()) for text in self.errors[:3]) or "it gave no reason"

    def clear(self) -> None:
        """Forget the errors so far."""
        self.errors.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """One of NVIDIA's runtimes: its module, version, logger, and the log that logger writes."""

    name: str
    module: Any
    version: str
    logger: Any
    log: BuildLog

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX, whose builder needs no GPU."""
        return self.name == TENSORRT_RTX

    def find(self, path: str) -> Any:
        """A name such as ``BuilderFlag.STRIP_PLAN``; None where this version has none."""
        found = self.module
        for part in path.split("."):
            found = getattr(found, part, None)
            if found is None:
                return None
        return found

    def require(self, path: str, what: str) -> Any:
        """A name, or one line that says what this version cannot do.

        Raises:
            InputError: it has no such name.
        """
        found = self.find(path)
        if found is None:
            raise InputError(
                f"{self.name} {self.version} cannot {what}: it has no {path}; leave it out or change version"
            )
        return found

    def require_driver(self, what: str) -> None:
        """See that calls which need the driver may be made.

        Raises:
            EnvironmentMissingError: there is no driver, or it sees no GPU.
        """
        if not has_driver():
            raise EnvironmentMissingError(
                f"{what} needs an NVIDIA GPU and its driver, and none was found here; "
                "run it on a machine with one ('glm-export doctor' shows what a machine has)"
            )

    def polygraphy(self) -> ModuleType:
        """Polygraphy's TensorRT backend, bound to this runtime.

        Raises:
            EnvironmentMissingError: this process bound it to the other runtime already.
        """
        from polygraphy import config

        backend = sys.modules.get("polygraphy.backend.trt")
        if backend is not None and self.rtx != config.USE_TENSORRT_RTX:
            raise EnvironmentMissingError(
                f"this process uses the other TensorRT already; start a new one for {self.name}"
            )
        config.USE_TENSORRT_RTX = self.rtx
        if self.rtx:
            # Polygraphy knows the package by this name; the bindings alone are the same module.
            sys.modules.setdefault("tensorrt_rtx", self.module)
        return import_module("polygraphy.backend.trt")


def installed(name: str) -> ModuleType | None:
    """The module of a runtime; None where it is not installed.

    Raises:
        EnvironmentMissingError: it is installed, and its libraries cannot be loaded.
    """
    candidate = next((module for module in MODULES[name] if find_spec(module) is not None), None)
    if candidate is None:
        return None
    try:
        return import_module(candidate)
    except (ImportError, OSError) as error:
        raise EnvironmentMissingError(
            f"{name} is installed and cannot be loaded: {error}; {INSTALL[name]} again"
        ) from error


def targets_of(module: Any) -> tuple[str, ...]:
    """Compute capabilities a runtime's module can build for, as it names them; TensorRT builds for the GPU at hand."""
    known = getattr(module, "ComputeCapability", None)
    names = () if known is None else known.__members__
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM"))


@cache
def load(name: str) -> TensorRT:
    """Open a runtime. A process has one logger for each: TensorRT ignores every later one.

    Args:
        name: one of :data:`RUNTIMES`.

    Raises:
        InputError: the name is unknown.
        EnvironmentMissingError: it is not installed, or cannot be loaded.
    """
    if name not in RUNTIMES:
        raise InputError(f"runtime {name!r} is unknown; known: {', '.join(RUNTIMES)}")
    module = installed(name)
    if module is None:
        raise EnvironmentMissingError(f"{name} is not installed; {INSTALL[name]}")
    log = BuildLog()
    return TensorRT(name=name, module=module, version=module.__version__, logger=_logger(module, log), log=log)


def _logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """Hands every message on; TensorRT calls it from C++, where an exception would end the process."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            log.take(severity.name, text)

    return Logger()
