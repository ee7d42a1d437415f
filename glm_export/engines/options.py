"""What may be asked of a build, and what of it a version offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glm_export.engines.vendor import TensorRT
from glm_export.errors import InputError
from glm_export.machine.gpu import has_driver

AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = "ampere-plus", "same-compute-capability"
HARDWARE = {AMPERE_PLUS: "AMPERE_PLUS", SAME_COMPUTE_CAPABILITY: "SAME_COMPUTE_CAPABILITY"}
CURRENT = "current"
OFFERED = {
    "version_compatible": ("BuilderFlag.VERSION_COMPATIBLE", "build engines for later versions"),
    "refittable": ("BuilderFlag.REFIT", "build refittable engines"),
    "stripped": ("BuilderFlag.STRIP_PLAN", "leave the weights out of a plan"),
    "weight_streaming": ("ICudaEngine.weight_streaming_budget_v2", "stream weights"),
    "optimization_level": ("IBuilderConfig.builder_optimization_level", "choose an optimization level"),
}
"""Option -> the name it stands on, and what it is for."""
MOST_BYTES = 1 << 63
NEED_DRIVER_IN_RTX = ("version_compatible", "refittable", "stripped")
"""Seen in TensorRT-RTX 1.7: without a driver the builder gives up on these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build. None leaves a choice to TensorRT.

    ``version_compatible``: later versions load it. ``hardware_compatible``: other GPUs load it (:data:`HARDWARE`).
    ``refittable``: weights can be exchanged. ``stripped``: the plan has none; they stay in the ONNX program beside it
    and are put in when it is loaded. ``weight_streaming``: weights may stay in host memory. ``workspace_bytes``:
    scratch a kernel may use. ``optimization_level``: 0 builds fast, 5 searches long. ``compute_capabilities``: targets
    of TensorRT-RTX, such as ``8.9``, or ``current``.
    """

    version_compatible: bool = False
    hardware_compatible: str | None = None
    refittable: bool = False
    stripped: bool = False
    weight_streaming: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and not 0 < self.workspace_bytes < MOST_BYTES:
            raise InputError(f"--workspace must be more than 0 and fewer than 2^63 bytes, found {self.workspace_bytes}")

    def require_offered(self, tensorrt: TensorRT) -> None:
        """See that the version offers what is asked.

        Raises:
            InputError: it does not, and the option is named.
            EnvironmentMissingError: it does on a machine with a GPU only.
        """
        for option, (path, what) in OFFERED.items():
            if getattr(self, option) in (None, False):
                continue
            tensorrt.require(path, what)
            if tensorrt.rtx and option in NEED_DRIVER_IN_RTX and not has_driver():
                tensorrt.require_driver(f"--{option.replace('_', '-')} with {tensorrt.name}")
        if self.hardware_compatible is not None:
            if tensorrt.rtx:
                raise InputError(f"--hardware-compatible is TensorRT's; {tensorrt.name} has --compute-capability")
            if self.hardware_compatible not in HARDWARE:
                raise InputError(f"--hardware-compatible is one of {', '.join(HARDWARE)}")
            name = f"HardwareCompatibilityLevel.{HARDWARE[self.hardware_compatible]}"
            tensorrt.require(name, "build engines for other GPUs")
        if self.compute_capabilities:
            targets(self.compute_capabilities, tensorrt)

    def polygraphy_arguments(self, tensorrt: TensorRT) -> dict[str, Any]:
        """As arguments of Polygraphy's ``CreateConfig`` and ``CreateConfigRTX``."""
        arguments: dict[str, Any] = {
            "version_compatible": self.version_compatible, "refittable": self.refittable,
            "strip_plan": self.stripped, "weight_streaming": self.weight_streaming,
            "builder_optimization_level": self.optimization_level,
        }  # fmt: skip
        if self.hardware_compatible is not None:
            level = tensorrt.find(f"HardwareCompatibilityLevel.{HARDWARE[self.hardware_compatible]}")
            arguments["hardware_compatibility_level"] = level
        if self.workspace_bytes is not None:
            arguments["memory_pool_limits"] = {tensorrt.find("MemoryPoolType.WORKSPACE"): self.workspace_bytes}
        if self.compute_capabilities == (CURRENT,):
            arguments["use_gpu"] = True
        elif self.compute_capabilities:
            arguments["compute_capabilities"] = targets(self.compute_capabilities, tensorrt)
        return arguments


def targets(capabilities: tuple[str, ...], tensorrt: TensorRT) -> list[tuple[int, int]]:
    """Compute capabilities as numbers.

    Raises:
        InputError: the runtime has no such target.
        EnvironmentMissingError: ``current`` without a GPU.
    """
    known = tensorrt.require("ComputeCapability", "build for chosen compute capabilities").__members__
    offered = [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]
    if capabilities == (CURRENT,):
        tensorrt.require_driver("the target 'current'")
        return []
    for capability in capabilities:
        if capability not in offered:
            raise InputError(
                f"{tensorrt.name} {tensorrt.version} has no target {capability!r}; it has {', '.join(offered)}, "
                f"or {CURRENT!r} alone"
            )
    return [(int(major), int(minor)) for major, minor in (capability.split(".") for capability in capabilities)]
