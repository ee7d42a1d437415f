"""What may be asked of a build, and what of it a version offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glm_export.engines.vendor import TensorRT, targets_of
from glm_export.errors import InputError
from glm_export.machine.gpu import has_driver
from glm_export.spec.option import described, listed

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
ENTROPY, MIN_MAX = "entropy", "min-max"
"""Algorithms of implicit INT8."""
MOST_BYTES = 1 << 63
NEED_DRIVER_IN_RTX = ("version_compatible", "refittable", "stripped")
"""Seen in TensorRT-RTX 1.7: without a driver the builder gives up on these."""
UNPROVEN_IN_PLACE = ("version_compatible", "refittable", "stripped")
"""Options whose engines nobody has loaded where a cache is updated in place (``KV_CACHE_UPDATE``)."""
UNPROVEN = " Unproven with dialect tensorrt."


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build. None leaves a choice to TensorRT."""

    version_compatible: bool = field(default=False, metadata=described(f"Later versions load it.{UNPROVEN}"))
    hardware_compatible: str | None = field(
        default=None, metadata=described("Other GPUs load it.", choices=tuple(HARDWARE))
    )
    refittable: bool = field(default=False, metadata=described(f"Weights can be exchanged.{UNPROVEN}"))
    stripped: bool = field(
        default=False,
        metadata=described(f"No weights in the plan: they are put in from ONNX when it is loaded.{UNPROVEN}"),
    )
    weight_streaming: bool = field(default=False, metadata=described("Weights may stay in host memory."))
    workspace_bytes: int | None = field(
        default=None, metadata=described("Scratch a kernel may use; default: TensorRT's.", flag="workspace")
    )
    optimization_level: int | None = field(
        default=None, metadata=described("0 builds fast, 5 searches long.", least=0, most=5)
    )
    compute_capabilities: tuple[str, ...] = field(
        default=(), metadata=described("Target of TensorRT-RTX, e.g. 8.9; or current.", flag="compute-capability")
    )

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
    tensorrt.require("ComputeCapability", "build for chosen compute capabilities")
    offered = targets_of(tensorrt.module)
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
