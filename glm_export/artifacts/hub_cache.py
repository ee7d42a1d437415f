"""Models in the local Hugging Face cache, by its own folders or by ``ORG/NAME[@REVISION]``. Nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from glm_export.errors import InputError
from glm_export.model_folder import HUB_PREFIX

IDENTIFIER = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?$")


def snapshot_in(folder: Path) -> Path:
    """The snapshot that ``refs/main`` names, of a cache's ``models--ORG--NAME``; any other folder as it is.

    Raises:
        InputError: the cache holds no snapshot, or several and no ``refs/main``.
    """
    snapshots = folder / "snapshots"
    if not folder.name.startswith(HUB_PREFIX) or not snapshots.is_dir():
        return folder
    reference = folder / "refs" / "main"
    if reference.is_file():
        chosen = snapshots / Path(reference.read_text(encoding="utf-8").strip()).name
        if chosen.is_dir():
            return chosen
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) == 1:
        return found[0]
    listed = ", ".join(str(path) for path in found) or "none"
    raise InputError(f"{folder} is a Hugging Face cache without refs/main; give one of its snapshots: {listed}")


def cached(source: str) -> Path | None:
    """The snapshot of ``ORG/NAME[@REVISION]`` in the local cache; None where ``source`` does not look like one.

    Raises:
        InputError: it looks like one, and is not in the cache; the message says the command that downloads it.
    """
    match = IDENTIFIER.match(source)
    if match is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = match["name"], match["revision"]
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        return None
    except LocalEntryNotFoundError as error:
        wanted = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{source} is no folder, and no model of that name is in the local Hugging Face cache; nothing is "
            f"downloaded here: run 'hf download {name}{wanted}' first, or give a folder"
        ) from error


def names_in_cache() -> list[str]:
    """``ORG/NAME`` of every model in the local cache, in order; nothing of the hub's library is imported."""
    home = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    root = Path(home) if home else Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub"
    folders = root.glob(f"{HUB_PREFIX}*--*") if root.is_dir() else ()
    return sorted(folder.name.removeprefix(HUB_PREFIX).replace("--", "/") for folder in folders)
