"""The extras of a machine with a GPU: as all files name them, and what of them a machine lacks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from glm_export.deployment import extras
from glm_export.deployment.extras import (
    CUDA_EXTRA,
    CUDA_LIBRARIES,
    EXTRAS,
    INSTALL_CUDA,
    LEAST_TENSORRT,
    lacking,
)
from glm_export.engines import vendor
from glm_export.engines.fit import Host
from glm_export.spec.session_entries import LEAST_ON_CUDA

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
INSTALLED = {EXTRAS[name]: line for name, line in vendor.INSTALL.items()} | {CUDA_EXTRA: INSTALL_CUDA}


def machine(tensorrt: str | None) -> Host:
    """One with TensorRT-RTX, and this version of TensorRT."""
    versions = {vendor.TENSORRT_RTX: "1.7.1"} | ({vendor.TENSORRT: tensorrt} if tensorrt else {})
    missing = {name: f"not installed; {vendor.INSTALL[name]}" for name in vendor.RUNTIMES if name not in versions}
    return Host(system="Linux", gpus=(), versions=versions, missing=missing)


Packages = dict[str, str]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Packages:
    """Those of a machine that has ONNX Runtime for CUDA with all it loads."""
    found = {"onnxruntime-gpu": "1.31.0", CUDA_LIBRARIES: "9.1"}
    monkeypatch.setattr(extras, "installed", found.get)
    return found


@pytest.mark.parametrize("extra", INSTALLED)
def test_what_is_said_to_be_installed_is_declared_and_documented(extra: str) -> None:
    line = INSTALLED[extra]
    assert extra in DECLARED
    command = re.fullmatch(r"(pip install 'glm-export\[(\w+)\]'(?: --extra-index-url \S+)?)(?: \(.*\))?", line)
    assert command is not None
    assert command[2] == extra
    assert f"\n$ {command[1]}\n" in (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"'glm-export[{extra}]'" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("extra", "package", "least"),
    [("tensorrt", "tensorrt", LEAST_TENSORRT), (CUDA_EXTRA, "onnxruntime-gpu", LEAST_ON_CUDA)],
)
def test_least_versions_stand_once(extra: str, package: str, least: tuple[int, int]) -> None:
    (asked,) = map(Requirement, DECLARED[extra])
    assert (asked.name, str(asked.specifier)) == (package, f">={least[0]}.{least[1]}")


def test_locked_images_have_an_onnx_runtime_that_serves_cuda() -> None:
    (asked,) = map(Requirement, DECLARED[CUDA_EXTRA])
    assert asked.extras == {"cuda", "cudnn"}
    for name in ("run", "ci"):
        text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
        (found,) = re.findall(r"^onnxruntime-gpu==(\S+)", text, re.M)
        assert asked.specifier.contains(found)


def test_a_machine_that_lacks_nothing(packages: Packages) -> None:
    assert lacking(machine("10.15.0")) == {}


def test_tensorrt_that_is_missing_or_too_old(packages: Packages) -> None:
    assert lacking(machine(None)) == {"tensorrt": f"not installed; {vendor.INSTALL[vendor.TENSORRT]}"}
    old = lacking(machine("10.9.0.34"))
    assert old.keys() == {"tensorrt"}
    assert old["tensorrt"].startswith(
        "10.9.0.34 reads the dialect portable alone, 10.15 and later another as well; pip"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({CUDA_LIBRARIES: None}, "onnxruntime-gpu 1.31.0 is there, nvidia-cudnn-cu13 and the other libraries it loads"),
        ({"onnxruntime-gpu": "1.30.2"}, "onnxruntime-gpu 1.30.2 lacks kernels for CUDA, 1.31 and later have them"),
        ({"onnxruntime-gpu": None}, "onnxruntime-gpu is not installed"),
        ({"onnxruntime": "1.32.0"}, "onnxruntime 1.32.0 stands in the place of onnxruntime-gpu; pip uninstall onnx"),
    ],
)
def test_onnx_runtime_that_does_not_serve_cuda(
    changes: dict[str, str | None], words: str, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "installed", (packages | changes).get)
    found = lacking(machine("11.4"))
    assert found.keys() == {CUDA_EXTRA}
    assert found[CUDA_EXTRA].startswith(words)
    assert found[CUDA_EXTRA].endswith("; pip install 'glm-export[cuda]'")
