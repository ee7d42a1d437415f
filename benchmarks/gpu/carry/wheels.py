"""What a machine lacks of what the kit needs, downloaded for its Python and laid out for ``PYTHONPATH``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from carry.pieces import CarryError

SMALL, ONNXRUNTIME, TENSORRT_RTX = "small", "onnxruntime", "tensorrt-rtx"
SETS: dict[str, tuple[str, ...]] = {
    SMALL: (
        "polygraphy", "sentencepiece", "tiktoken", "rich-click", "click", "rich", "markdown-it-py", "mdurl", "pygments",
        "jinja2", "markupsafe", "safetensors", "tokenizers", "huggingface-hub", "hf-xet", "regex", "requests",
        "urllib3", "idna", "certifi", "charset-normalizer", "sympy", "mpmath", "flatbuffers", "protobuf", "packaging",
        "ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxscript", "typing-extensions", "setuptools", "filelock", "tqdm",
        "pyyaml", "fsspec",
    ),
    ONNXRUNTIME: ("onnxruntime-gpu==1.31.1",),
    TENSORRT_RTX: ("tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116"),
}  # fmt: skip
"""Packages by what they are for; those without a version are carried in their newest."""
NOT_CARRIED = (
    # ONNX Runtime for C, and its TensorRT provider, which nothing here uses.
    "onnxruntime/capi/libonnxruntime.so*", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "onnxruntime/transformers/*", "onnxruntime/tools/*", "onnxruntime/quantization/*",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DATA = re.compile(r"^[^/]+\.data/(?P<kind>[^/]+)/(?P<rest>.+)$")


@dataclass(frozen=True)
class There:
    """A machine: its Python, and the packages on it by normalized name."""

    python: str
    packages: dict[str, str]


def read_there(path: Path) -> There:
    """From what ``there.py look`` printed there.

    Raises:
        CarryError: it is not that.
    """
    try:
        lines = [line.partition("==") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise CarryError(f"{path} should list what is installed there, and cannot be read: {error}") from error
    found = {normalized(name): version for name, _, version in lines if not name.startswith("#")}
    python = found.pop("python", None)
    if python is None:
        raise CarryError(f"{path} should have a line python==3.12.1, and has none; write it with `there.py look`")
    return There(".".join(python.split(".")[:2]), found)


def normalized(name: str) -> str:
    """As package indexes write names."""
    return re.sub(r"[-_.]+", "-", name).lower().strip()


def missing(sets: Iterable[str], there: There) -> list[str]:
    """Requirements of some sets that a machine does not meet.

    Raises:
        CarryError: a set is unknown.
    """
    found = []
    for name in sets:
        if name not in SETS:
            raise CarryError(f"set {name!r} is unknown; there are {', '.join(SETS)}")
        for requirement in SETS[name]:
            package, _, version = requirement.partition("==")
            installed = there.packages.get(normalized(package))
            if installed is None or (version and installed != version):
                found.append(requirement)
    return found


def download(requirements: Sequence[str], there: There, folder: Path, sources: Sequence[str] = ()) -> list[Path]:
    """Wheels for the machine's Python; what a folder holds already is not fetched again.

    Args:
        requirements: which.
        there: the machine.
        folder: where to.
        sources: further words for pip, e.g. of a machine without an index ``--no-index --find-links DIR``.

    Raises:
        CarryError: there is no such wheel; pip's reason is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    abi = f"cp{there.python.replace('.', '')}"
    before = {path.name for path in folder.glob("*.whl")}
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    words += ["--dest", str(folder), "--find-links", str(folder), "--implementation", "cp"]
    words += ["--python-version", there.python, *(word for one in (abi, "abi3", "none") for word in ("--abi", one))]
    words += [word for one in PLATFORMS for word in ("--platform", one)]
    done = subprocess.run([*words, *sources, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise CarryError(f"pip found no wheels for Python {there.python}: {(said or ['it said nothing'])[-1]}", 3)
    names = {normalized(requirement.partition("==")[0]) for requirement in requirements}
    found = [path for path in sorted(folder.glob("*.whl")) if normalized(path.name.split("-")[0]) in names]
    stale = [path for path in found if path.name in before and _newer(path, found, before)]
    return [path for path in found if path not in stale]


def _newer(path: Path, found: Sequence[Path], before: set[str]) -> bool:
    """Whether this download brought another version of the same package."""
    package = path.name.split("-")[0]
    return any(other.name.split("-")[0] == package and other.name not in before for other in found)


def lay_out(wheels: Iterable[Path], site: Path) -> None:
    """Take wheels apart as pip would, without scripts and without what is not used."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                name = entry.filename
                data = DATA.match(name)
                if data is not None:
                    if data["kind"] not in ("purelib", "platlib"):
                        continue
                    name = data["rest"]
                if entry.is_dir() or any(fnmatch(name, pattern) for pattern in NOT_CARRIED):
                    continue
                entry.filename = name
                archive.extract(entry, site)
