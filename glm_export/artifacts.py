"""What travels between the steps: an ONNX program in its folder, with signature and provenance."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from glm_export.config import GlmConfig
from glm_export.errors import CheckpointError, EnvironmentMissingError, InputError
from glm_export.signature import Signature

if sys.platform != "win32":
    import fcntl

MANIFEST = "manifest.json"
ENGINE_MANIFEST = "engine.json"
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
MANIFEST_FORMAT = 1
RECORDED_PACKAGES = ("glm-export", "torch", "onnx", "onnxscript", "onnx-ir", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxProgram:
    """An exported folder: ``model.onnx``, ``model.onnx.data``, tokenizer files, configs, manifest."""

    folder: Path
    config: GlmConfig
    signature: Signature
    dialect: str
    dtype: str
    logits: str
    manifest: dict[str, Any]
    recipe: str | None = None

    @property
    def model_path(self) -> Path:
        """The graph; its weights lie beside it."""
        return self.folder / MODEL


def is_program(folder: Path) -> bool:
    """Whether a folder was written by glm-export."""
    return (folder / MANIFEST).is_file()


def is_engine(folder: Path) -> bool:
    """Whether a folder holds an engine that glm-export built."""
    return (folder / ENGINE_MANIFEST).is_file()


def load_program(folder: Path) -> OnnxProgram:
    """Open an exported folder.

    Raises:
        InputError: it is no exported folder.
        CheckpointError: files are missing or not the size the manifest states.
    """
    if not is_program(folder):
        raise InputError(f"{folder} holds no {MANIFEST}; give a folder that 'glm-export export' wrote")
    path = folder / MANIFEST
    manifest = read_manifest(path, "export")
    try:
        return program_of(folder, manifest)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this version: {error!r}; export again") from error


def program_of(folder: Path, manifest: dict[str, Any]) -> OnnxProgram:
    """What a program's manifest says, for files in ``folder``."""
    return OnnxProgram(
        folder=folder,
        config=GlmConfig.from_json(manifest["config"]),
        signature=Signature.from_json(manifest["signature"]),
        dialect=manifest["dialect"],
        dtype=manifest["dtype"],
        logits=manifest["logits"],
        manifest=manifest,
        recipe=manifest.get("recipe"),
    )


def read_manifest(path: Path, verb: str) -> dict[str, Any]:
    """Read what a folder of ours says of itself, and see that its files have the sizes it states.

    Args:
        path: the manifest.
        verb: what to do again where something is amiss, ``export`` or ``build``.

    Raises:
        CheckpointError: it cannot be read, is of another format, or a file is missing or has another size.
    """
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}; {verb} again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} should hold a JSON object with the sizes of its files; {verb} again")
    if manifest.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')!r}, this version reads {MANIFEST_FORMAT}; {verb} again"
        )
    if not isinstance(manifest.get("sizes"), dict):
        raise CheckpointError(f"{path} does not state the sizes of its files; {verb} again")
    for name, size in manifest["sizes"].items():
        file = path.parent / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file} should have {size} bytes, found {found if found is not None else 'no file'}; {verb} again"
            )
    return manifest


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a program, and of this one."""
    installed = {
        name: distribution.version
        for distribution in distributions()
        if (name := distribution.metadata["Name"]) in RECORDED_PACKAGES
    }
    return {name: installed.get(name, "not installed") for name in RECORDED_PACKAGES}


def refuse_overwrite(out: Path, *, force: bool) -> None:
    """Check that an output folder may be written.

    Raises:
        InputError: it exists and ``force`` is not given, or it is something glm-export did not write.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if not (is_program(out) or is_engine(out)):
        raise InputError(
            f"{out} was not written by glm-export (no {MANIFEST} nor {ENGINE_MANIFEST}), so --force does not "
            "replace it; remove it yourself"
        )


def free_disk_for(out: Path, needed: int, what: str) -> int:
    """Free bytes of the disk that ``out`` will lie on.

    Args:
        out: a folder to write, which need not exist.
        needed: bytes.
        what: says who needs them, e.g. ``the export needs``.

    Raises:
        EnvironmentMissingError: there are fewer than needed.
    """
    home = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise EnvironmentMissingError(
            f"{what} {needed / 1e9:.2f} GB, and the disk of {home} has {free / 1e9:.2f} GB free; "
            "free space or choose another --out"
        )
    return free


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` when everything went well, and vanishes otherwise.

    What an interrupted run left behind is replaced. An existing ``out`` is swapped only after the new one is whole.

    Raises:
        InputError: another run is filling the folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.replaced"
    with _alone(out, out.parent / f".{out.name}.lock"):
        yield from _filled(out, partial, replaced)


def _filled(out: Path, partial: Path, replaced: Path) -> Iterator[Path]:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(replaced, ignore_errors=True)
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _alone(out: Path, lock: Path) -> Iterator[None]:
    """Hold a lock that the system gives up when the process ends, however it ends."""
    if sys.platform == "win32":
        yield
        return
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another run is writing {out}; wait for it, or give another --out") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable JSON, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
