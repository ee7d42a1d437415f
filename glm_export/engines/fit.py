"""Whether an engine will load here, said before it is tried: a plan is made for one version and one kind of GPU."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from glm_export.artifacts.engine import Engine
from glm_export.engines import vendor
from glm_export.engines.options import AMPERE_PLUS
from glm_export.errors import EnvironmentMissingError
from glm_export.machine.gpu import DEVICE, Gpu, gpus

AMPERE = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this machine has for engines: ``versions`` by runtime, and GPUs.

    ``targets``: compute capabilities that its TensorRT-RTX knows; none where that is not installed.
    """

    system: str
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]
    missing: dict[str, str]
    """Runtimes that are not there, and why."""
    targets: tuple[str, ...] = ()


def probe_host() -> Host:
    """Ask this machine."""
    versions, missing = {}, {}
    targets: tuple[str, ...] = ()
    for name in vendor.RUNTIMES:
        try:
            module = vendor.installed(name)
        except EnvironmentMissingError as error:
            missing[name] = str(error)
            continue
        if module is None:
            missing[name] = f"not installed; {vendor.INSTALL[name]}"
        else:
            versions[name] = module.__version__
            targets = vendor.targets_of(module) or targets
    return Host(system=platform.system(), gpus=tuple(gpus()), versions=versions, missing=missing, targets=targets)


def incompatibilities(engine: Engine, machine: Host) -> list[str]:
    """Why an engine will not load on a machine, each with what to do; empty where nothing speaks against it."""
    found = []
    if engine.runtime != vendor.TENSORRT_RTX and engine.built_on.system != machine.system:
        found.append(f"it was built on {engine.built_on.system}, this is {machine.system}; build it here")
    found += _version_incompatibilities(engine, machine)
    if not machine.gpus:
        found.append("no NVIDIA GPU or driver was found; run it where there is one")
        return found
    gpu = machine.gpus[DEVICE]
    found += (
        _target_incompatibilities(engine, gpu, machine.targets)
        if engine.runtime == vendor.TENSORRT_RTX
        else _gpu_incompatibilities(engine, gpu)
    )
    needed = needed_bytes(engine)
    if needed > gpu.memory_bytes:
        found.append(
            f"it takes about {needed / 1e9:.1f} GB with one row, {gpu.name} has {gpu.memory_bytes / 1e9:.1f} GB; "
            "quantize, or build with a smaller --max-context or --prefill-tokens"
        )
    return found


def needed_bytes(engine: Engine) -> int:
    """Device memory of weights, activations of the larger profile, and one row's keys and values."""
    memory = engine.manifest["memory"]
    return int(memory["weights"] + max(memory["activations"].values(), default=0) + memory["cache_row"])


def _version_incompatibilities(engine: Engine, machine: Host) -> list[str]:
    found = machine.versions.get(engine.runtime)
    if found is None:
        return [f"{engine.runtime} {engine.version} is needed: {machine.missing.get(engine.runtime, 'not installed')}"]
    built, runs = _numbers(engine.version), _numbers(found)
    if built == runs or (engine.compatibility.version and runs[:2] >= built[:2]):
        return []
    either = f"install {engine.runtime} {engine.version}, or build again with {found}"
    if engine.compatibility.version:
        return [f"it was built for {engine.runtime} {engine.version} and later, found {found}; {either}"]
    later = "--version-compatible makes engines for later versions"
    return [f"it was built with {engine.runtime} {engine.version}, found {found}; {either} ({later})"]


def _target_incompatibilities(engine: Engine, gpu: Gpu, known: tuple[str, ...]) -> list[str]:
    """Of TensorRT-RTX, which knows its GPUs by name: there is none for Hopper (9.0), though it is newer than Ampere."""
    capability = gpu.compute_capability
    later = tuple(target for target in known if _numbers(target) >= AMPERE)
    targets = engine.compatibility.targets or later
    # Where TensorRT-RTX is not installed nothing is known of its targets, and that it is missing is said already.
    if capability in targets or not known:
        return []
    built_for = ", ".join(targets)
    if capability not in known:
        hint = f"{vendor.TENSORRT_RTX} has no target {capability}, build with --runtime {vendor.TENSORRT}"
    else:
        hint = f"build with --compute-capability {capability}"
    return [f"it was built for compute capability {built_for}, {gpu.name} has {capability}; {hint}"]


def _gpu_incompatibilities(engine: Engine, gpu: Gpu) -> list[str]:
    capability = gpu.compute_capability
    built_on = f"{engine.built_on.gpu} (compute capability {engine.built_on.compute_capability})"
    found = f"{gpu.name} has {capability}"
    if engine.built_on.compute_capability == capability:
        return []
    if engine.compatibility.hardware == AMPERE_PLUS and _numbers(capability) >= AMPERE:
        return []
    return [f"it was built for {built_on}, {found}; build it here, or there with --hardware-compatible {AMPERE_PLUS}"]


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that decide: of ``10.16.1.11.post1`` the first three."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def require_fit(engine: Engine) -> None:
    """See that an engine will load here.

    Raises:
        EnvironmentMissingError: it will not; every reason is named.
    """
    found = incompatibilities(engine, probe_host())
    if found:
        raise EnvironmentMissingError(f"{engine.folder} will not load here: {'; '.join(found)}")
