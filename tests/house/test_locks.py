"""What CI and images install is what pyproject.toml asks for, and nothing that a machine has to choose."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = {"run": PROJECT["dependencies"], "ci": [*PROJECT["dependencies"], *EXTRAS["test"]]}
MACHINES = [
    {"python_version": version, "python_full_version": f"{version}.1", "sys_platform": system, "platform_machine": chip}
    for version in ("3.11", "3.12", "3.13")
    for system, chip in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]
PINNED = re.compile(
    r"^([a-zA-Z0-9._-]+)==(\S+?)(?: ; (.*?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


def locked(name: str, machine: dict[str, str]) -> dict[str, str]:
    """Versions by package, on a machine."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    found = PINNED.findall(text)
    assert len(found) == len(re.findall("^[a-zA-Z]", text, re.M)), "a package without hashes"
    return {
        canonicalize_name(package): version
        for package, version, marker, _ in found
        if not marker or Marker(marker).evaluate(dict(machine))
    }


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
def test_a_lock_is_within_the_ranges_and_leaves_torch_to_the_machine(name: str, machine: dict[str, str]) -> None:
    versions = locked(name, machine)
    for asked in map(Requirement, ASKED[name]):
        package = canonicalize_name(asked.name)
        if package in ("torch", "glm-export") or (asked.marker and not asked.marker.evaluate(dict(machine))):
            continue
        assert package in versions, f"{asked} is not in {name}.lock; run make lock"
        assert asked.specifier.contains(versions[package]), f"{asked}, locked {versions[package]}; run make lock"
    strange = [package for package in versions if re.match("torch|nvidia-|cuda-|triton", package)]
    assert strange == []
    # What any build of torch needs is there.
    assert {"sympy", "networkx", "filelock", "fsspec", "typing-extensions"} <= versions.keys()
