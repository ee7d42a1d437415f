"""The one door: what a folder is, told by a file that no other kind has. Nothing is read of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from glm_export.artifacts.hub_cache import IDENTIFIER, cached, snapshot_in
from glm_export.artifacts.manifest import (
    ENGINE_MANIFEST,
    LAYOUT_MANIFEST,
    MANIFEST,
    RANGES_MANIFEST,
    SIGNATURE,
    STATEMENTS,
    TRITON_MANIFEST,
)
from glm_export.embedded import FOLDERS
from glm_export.errors import InputError
from glm_export.model_folder import read_json
from glm_export.progress import Progress
from glm_export.store.address import is_url

if TYPE_CHECKING:  # a path needs nothing of a store
    from glm_export.store.cache import View

LISTED = 6


class Kind(Enum):
    """What a folder can be, in the words of a sentence."""

    ENGINE = "engine"
    PROGRAM = "ONNX program"
    RANGES = "ranges"
    TRITON = "Triton model"
    LAYOUT = "model of another program"
    ADAPTER = "adapter"
    CHECKPOINT = "checkpoint"


TOLD_BY = {
    Kind.ENGINE: ENGINE_MANIFEST,
    Kind.PROGRAM: MANIFEST,
    Kind.RANGES: RANGES_MANIFEST,
    Kind.TRITON: TRITON_MANIFEST,
    Kind.LAYOUT: LAYOUT_MANIFEST,
    Kind.ADAPTER: "adapter_config.json",
    Kind.CHECKPOINT: "config.json",
}
"""The file that tells a kind, the surest first: what we write holds a ``config.json`` too, for other loaders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A folder, and what it is. Make it with :func:`open_artifact`."""

    kind: Kind
    path: Path


def kind_of(folder: Path) -> Kind | None:
    """What a folder is; None where it is nothing glm-export knows, or no folder."""
    return next((kind for kind, name in TOLD_BY.items() if (folder / name).is_file()), None)


def located(source: str | Path, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """Where a model's folder lies on this machine: one behind a URL is fetched, everything else is a path.

    The one place where a URL becomes a folder; whoever takes a model's asks here.

    Args:
        source: a path, or ``s3://…``, ``gs://…``, ``az://…``, ``http(s)://…``.
        progress: shows bytes as they arrive.
        cache: where they go; the user's if left out.

    Raises:
        GlmExportError: see :func:`glm_export.store.opening.open_url`.
    """
    if not is_url(source):
        return Path(source)
    return view_of(str(source), progress, cache).folder


def view_of(url: str, progress: Progress | None = None, cache: Path | None = None) -> View:
    """The folder behind a URL as the cache has it; see :func:`located`."""
    from glm_export.store.cache import Cache
    from glm_export.store.opening import open_url
    from glm_export.store.plan import Ours

    ours = Ours(manifests=(ENGINE_MANIFEST, MANIFEST, RANGES_MANIFEST), beside=(SIGNATURE, STATEMENTS))
    return open_url(url, ours, cache=Cache(cache), progress=progress)


def open_artifact(source: str | Path) -> Artifact:
    """Say what a folder is.

    Args:
        source: a folder or its URL, the name of an embedded model, or ``ORG/NAME[@REVISION]`` in the local Hugging Face
            cache.

    Raises:
        InputError: there is no such folder, or it is of no kind; the message says which command downloads a model.
        GlmExportError: a URL cannot be fetched.
    """
    folder = located(source)
    if not folder.is_dir():
        folder = FOLDERS.get(str(source)) or cached(str(source)) or folder
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a model folder with config.json and weights, or 'demo'")
    folder = snapshot_in(folder)
    kind = kind_of(folder)
    if kind is None:
        looked_for = ", ".join(f"{name} ({kind.value})" for kind, name in TOLD_BY.items())
        raise InputError(
            f"{folder} holds nothing that says what it is: looked for {looked_for}, found {_listing(folder)}; "
            "give a model folder, or one that glm-export wrote"
        )
    return Artifact(kind=kind, path=folder)


def require_checkpoint(artifact: Artifact) -> Path:
    """The folder of a checkpoint.

    Raises:
        InputError: it is of another kind; the message says which folder to give.
    """
    path = artifact.path
    if artifact.kind in (Kind.PROGRAM, Kind.ENGINE):
        raise InputError(f"{path} is an exported folder; a checkpoint is expected here, the folder it was made from")
    if artifact.kind is Kind.TRITON:
        raise InputError(f"{path} is a Triton model, which tritonserver runs; give the folder it was made of")
    if artifact.kind is Kind.LAYOUT:
        raise InputError(f"{path} was laid out for another program; give the folder it was made of")
    if artifact.kind is Kind.RANGES:
        raise InputError(f"{path} is a folder of ranges; a checkpoint is expected here, the one they were measured on")
    if artifact.kind is Kind.ADAPTER:
        raise InputError(
            f"{path} is a PEFT adapter ({TOLD_BY[Kind.ADAPTER]}) of {base_of(path)}; a checkpoint is expected here: "
            f"give that, and --adapter {path}"
        )
    return path


def with_base(artifact: Artifact) -> tuple[Artifact, tuple[Path, ...]]:
    """A checkpoint and its adapters: an adapter brings the base it names along, where that has a published name.

    A path would lead out of the folder, and is left for the user to give.
    """
    if artifact.kind is not Kind.ADAPTER or not IDENTIFIER.match(base_of(artifact.path)):
        return artifact, ()
    return open_artifact(base_of(artifact.path)), (artifact.path,)


def base_of(adapter: Path) -> str:
    """The base an adapter folder names, as its owner wrote it: a path or the name of a published model.

    Raises:
        CheckpointError: its config is damaged.
    """
    name = read_json(adapter, TOLD_BY[Kind.ADAPTER]).get("base_model_name_or_path")
    return str(name) if name else "a base it does not name"


def _listing(folder: Path) -> str:
    """A few of the names in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more or "an empty folder"
