"""Which of the package's extras a machine lacks: what it takes to run on a GPU, runtime by runtime; and to draw."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from glm_export.engines import vendor
from glm_export.engines.fit import Host
from glm_export.errors import EnvironmentMissingError
from glm_export.spec.session_entries import LEAST_ON_CUDA

EXTRAS = {vendor.TENSORRT: vendor.TENSORRT, vendor.TENSORRT_RTX: "rtx"}
"""Of a runtime's name, in ``pyproject.toml``."""
CUDA_EXTRA, INSTALL_CUDA = "cuda", "pip install 'glm-export[cuda]'"
WITH_CUDA, WITHOUT_CUDA = "onnxruntime-gpu", "onnxruntime"
CUDA_LIBRARIES = "nvidia-cudnn-cu13"
"""Comes with the extra, and with a torch for CUDA 13."""
REPORT_EXTRA, INSTALL_REPORT, WITH_PLOTS = "report", "pip install 'glm-export[report]'", "matplotlib"
LEAST_TENSORRT = (10, 15)
"""The first that reads the dialect ``tensorrt``."""


def lacking(machine: Host) -> dict[str, str]:
    """What is missing of each extra, and the line that installs it; an extra that is whole is left out."""
    found = {EXTRAS[name]: why for name, why in machine.missing.items()}
    tensorrt = machine.versions.get(vendor.TENSORRT)
    if tensorrt is not None and _numbers(tensorrt) < LEAST_TENSORRT:
        found[EXTRAS[vendor.TENSORRT]] = (
            f"{tensorrt} reads the dialect portable alone, {_written(LEAST_TENSORRT)} and later another as well; "
            f"{vendor.INSTALL[vendor.TENSORRT]}"
        )
    cuda = _lacking_cuda()
    return found | ({CUDA_EXTRA: f"{cuda}; {INSTALL_CUDA}"} if cuda else {})


def require_report_extra() -> None:
    """See that plots can be drawn.

    Raises:
        EnvironmentMissingError: they cannot.
    """
    if installed(WITH_PLOTS) is None:
        raise EnvironmentMissingError(f"a report needs {WITH_PLOTS}, which is not installed; {INSTALL_REPORT}")


def _lacking_cuda() -> str | None:
    found, other = installed(WITH_CUDA), installed(WITHOUT_CUDA)
    if other is not None:
        # Both wheels write the same files, and one of them has no CUDA provider.
        return f"{WITHOUT_CUDA} {other} stands in the place of {WITH_CUDA}; pip uninstall {WITHOUT_CUDA} {WITH_CUDA}"
    if found is None:
        return f"{WITH_CUDA} is not installed"
    if _numbers(found) < LEAST_ON_CUDA:
        return f"{WITH_CUDA} {found} lacks kernels for CUDA, {_written(LEAST_ON_CUDA)} and later have them"
    if installed(CUDA_LIBRARIES) is None:
        return f"{WITH_CUDA} {found} is there, {CUDA_LIBRARIES} and the other libraries it loads are not"
    return None


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _written(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
