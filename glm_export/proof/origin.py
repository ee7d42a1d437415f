"""The checkpoint a program was made of, opened as the family it was exported as."""

from __future__ import annotations

from pathlib import Path

from glm_export import families
from glm_export.artifacts.open import open_artifact, require_checkpoint, with_base
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm_export.checkpoints.folder_files import folder_files, with_generation_config
from glm_export.embedded import FOLDERS
from glm_export.errors import ConfigError, GlmExportError, InputError
from glm_export.model_folder import file_sha256, read_json


def open_origin(program: OnnxProgram, source: str | Path | Checkpoint, family: str | None = None) -> Checkpoint:
    """Open the checkpoint a program is to be held to.

    Args:
        program: an exported folder's.
        source: a model folder, an embedded model, an adapter that names its base, or an open checkpoint.
        family: of the checkpoint; None is the program's, which need not be what its config.json says.

    Raises:
        InputError: the program was exported from another checkpoint; if from one of another family, that is said.
        GlmExportError: it cannot be opened.
    """
    if isinstance(source, Checkpoint):
        require_same_checkpoint(program, source)
        return source
    base, adapters = with_base(open_artifact(source))
    folder = require_checkpoint(base)
    try:
        checkpoint = open_checkpoint(folder, family or program.config.family, adapters)
        require_same_checkpoint(program, checkpoint)
    except (ConfigError, InputError) as error:
        theirs = _family_of(folder)
        if theirs is None or theirs == program.config.family:
            raise
        raise InputError(_of_two_families(program, folder, theirs)) from error
    return checkpoint


def require_same_checkpoint(program: OnnxProgram, checkpoint: Checkpoint) -> None:
    """Compare file names and the config's hash; weights themselves are compared by running.

    Raises:
        InputError: naming what differs.
    """
    recorded = [adapter["name"] for adapter in program.manifest.get("adapters", [])]
    given = [record["name"] for record in checkpoint.added]
    if recorded != given:
        raise InputError(
            f"{program.folder} was exported with {_adapters(recorded)}, and {checkpoint.folder} was given with "
            f"{_adapters(given)}; give the ones it was exported with (--adapter)"
        )
    if checkpoint.identity.fits_hashes(program.manifest["source_sha256"]):
        return
    if checkpoint.config.family != program.config.family:
        raise InputError(_of_two_families(program, checkpoint.folder, checkpoint.config.family))
    raise InputError(
        f"{program.folder} was exported from {program.manifest['checkpoint']!r}, and {checkpoint.folder} is "
        f"another checkpoint (files or config.json differ); give {_right_one(program, checkpoint.folder)}"
    )


def _adapters(names: list[str]) -> str:
    return f"adapters {', '.join(names)}" if names else "no adapter"


def _of_two_families(program: OnnxProgram, folder: Path, theirs: str) -> str:
    return (
        f"{program.folder} is a program of family {program.config.family}, and {folder} is another checkpoint, of "
        f"family {theirs}; give {_right_one(program, folder)}"
    )


def _right_one(program: OnnxProgram, given: Path) -> str:
    """The checkpoint a program came from, by a name that can be typed where it is found: embedded, or beside another.

    Its config's hash is compared, and the names of its weight files.
    """
    name, recorded = str(program.manifest["checkpoint"]), program.manifest["source_sha256"]
    beside = [(str(folder), folder) for folder in (given.parent / name, program.folder.absolute().parent / name)]
    for typed, folder in (*FOLDERS.items(), *beside):
        config = folder / "config.json"
        weights = [file for file in recorded if file != config.name and "/" not in file]
        same = config.is_file() and file_sha256(config) == recorded.get(config.name)
        if same and all((folder / file).is_file() for file in weights):
            return f"{typed}, which it came from"
    return f"the one it came from, of the name {name}"


def _family_of(folder: Path) -> str | None:
    """What a folder says its family is; None where it says nothing, or could be of several."""
    try:
        values = with_generation_config(folder, read_json(folder, "config.json"))
        family, doubt = families.identify(values, folder_files(folder))
    except GlmExportError:
        return None
    return None if doubt else family
